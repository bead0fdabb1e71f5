"""Importing public checkpoints: names translated, shapes checked, no code run. The files here are of random weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from diffbody import cli
from diffbody_ref.models.control import ControlBranch
from diffbody_ref.models.parts import NANO, PartNet
from diffbody_ref.weights.importers import PARTS_UNUSED, control_state, load_state, read_checkpoint
from tests.test_control import PARTS, tiny_unet

# The names of Stable Diffusion's own code, for a branch of two levels with one block each and attention in the second.
PLACES = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    **{f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(4)},
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_name(name: str) -> str:
    place = next(place for place in PLACES if name.startswith(f"{place}."))
    rest = name.removeprefix(f"{place}.")
    if ".resnets." in place:
        layer, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[layer]}.{kind}"
    return f"{PLACES[place]}.{rest}"


def random_branch() -> ControlBranch:
    branch = ControlBranch.from_unet(tiny_unet(), PARTS)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        branch.controlnet_cond_embedding.weight[:, 4:] = 0  # DiffBIR has neither pose nor attention
    return branch


def as_diffbir(branch: ControlBranch) -> dict[str, torch.Tensor]:
    state = branch.state_dict()
    condition = state.pop("controlnet_cond_embedding.weight")
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], condition[:, :4]], dim=1)
    return {original_name(name): value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_diffbirs_controlnet(tmp_path: Path, prefix: str) -> None:
    theirs = random_branch()
    state = {f"{prefix}{name}": value for name, value in as_diffbir(theirs).items()}
    torch.save(state if not prefix else {"state_dict": state}, tmp_path / "control.pth")
    ours = ControlBranch.from_unet(tiny_unet(), PARTS)
    path = tmp_path / "control.pth"
    load_state(ours, control_state(read_checkpoint(path), ours, path), path)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_a_controlnet_of_other_conditions_is_refused(tmp_path: Path) -> None:
    state = as_diffbir(random_branch())
    state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"][:, :4]  # ControlNet's own: z_t alone
    with pytest.raises(ValueError, match=r"x\.pth: not DiffBIR's ControlNet, which reads 8 channels: it reads 4"):
        control_state(state, random_branch(), Path("x.pth"))


def test_parts_leave_out_what_the_network_does_not_use(tmp_path: Path) -> None:
    theirs = PartNet(NANO)
    extra = {
        "parts_identity_classifier.0.classifier.weight": torch.ones(2, 2),
        "background_after_pooling_dim_reduce.layers.0.weight": torch.ones(2, 2),
        "backbone_appearance_feature_extractor.classifier.weight": torch.ones(2, 2),
    }
    state = {f"module.{name}": value for name, value in {**theirs.state_dict(), **extra}.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "reid.pth")
    ours = load_state(PartNet(NANO), read_checkpoint(tmp_path / "reid.pth"), tmp_path / "reid.pth", PARTS_UNUSED)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert "pixel_classifier.classifier.weight" in expected  # kept, though its name ends like one that is left out


class _Bad:
    def __reduce__(self) -> tuple:
        return (print, ("code of the file was run",))


def test_wrong_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, path = PartNet(NANO), tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match=r"file\.pth: no such checkpoint"):
        read_checkpoint(path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "more": _Bad()}, path)
    with pytest.raises(ValueError, match="without running code"):
        read_checkpoint(path)
    assert "was run" not in capsys.readouterr().out
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_checkpoint(path)
    state = network.state_dict()
    name = next(iter(state))
    for wrong, message in (
        ({n: v for n, v in state.items() if n != name}, f"1 tensors are missing, {name} first"),
        ({**state, "other": torch.ones(1)}, "it has no other"),
        ({**state, name: torch.ones(1)}, rf"{name} is \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_state(network, wrong, path)


def test_the_command_asks_for_something(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["import", str(tmp_path)])
    assert "nothing to import" in capsys.readouterr().err
