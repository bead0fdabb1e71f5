"""From a bundle, or any way to restore, to restored pictures. Of diffbody_ref it imports ops/ only."""
