"""What a source finds in a checkpoint, and what it reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from diffbody_ref.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Found:
    """A component that a source recognises in a checkpoint.

    Attributes:
        component: name of the component, such as "unet".
        what: what was recognised, in words, such as "RTMPose-l 384x288, 133 keypoints".
        config: what `read` needs to know, such as the sizes that the shapes say.
        prefixes: beginnings of the names of the tensors that this component answers for; "" is all of the file's.
    """

    component: str
    what: str
    config: Mapping[str, Any] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Imported:
    """A component that was read.

    Attributes:
        network: the component, which has diffusers' `save_pretrained`, or what the importer makes one of.
        ignored: by name, why a tensor of the checkpoint, or a folder in it, is not used. Every other tensor that the
            component answers for is.
        licence: the licence of the public weights of this source, in a few words.
        files: the files that were read; () is the checkpoint itself.
    """

    network: Any
    ignored: Mapping[str, str]
    licence: str
    files: tuple[Path, ...] = ()


class Source(Protocol):
    """A module of `diffbody_ref.weights.sources`: reads the files of one public project."""

    NAME: str

    def detect(self, checkpoint: Checkpoint) -> list[Found]:
        """The components in a checkpoint that are this source's, by keys and shapes; [] if it is another's."""

    def read(self, checkpoint: Checkpoint, found: Found) -> Imported:
        """Read one of the components that `detect` found.

        Raises:
            ValueError: a tensor is missing, left over or of another shape; names the file and the first ones.
        """
