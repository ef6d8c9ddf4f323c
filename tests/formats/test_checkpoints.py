"""Folders of checkpoints: names, wrappers, prefixes, families, and what is refused."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from plastiscope.error import RunError
from plastiscope.formats.checkpoints import Layout, Wanted, by_presentation, family, find_checkpoints, fit, read_state
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut


def fill(folder: Path, *names: str) -> Path:
    """Empty-looking checkpoints whose only tensor is the position of the name."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        torch.save({"weight": torch.tensor(float(i))}, folder / name)
    return folder


NOISY = "cifar100_resnet18_noisy_idx_{}_epoch_{}_noise_{}.ckpt"
FOLDERS = {
    "run": (["epoch_000000.pt", "epoch_000012.pt"], Wanted(), Layout.run, [0, 12]),
    "incremental": (
        ["index-0_epoch-200.pt", "index-0_epoch-0.pt", "index-0_epoch-1000.pt", "index-1_epoch-7.pt", "notes.txt"],
        Wanted(),
        Layout.incremental_cifar,
        [0, 200, 1000],
    ),
    "another index": (["index-0_epoch-200.pt", "index-3_epoch-7.pt"], Wanted(index=3), Layout.incremental_cifar, [7]),
    "standard names first": (
        ["checkpoint_index-0_epoch-5.pt", "checkpoint_original_index-0_epoch-6.pt", "index-0_epoch-4.pt"],
        Wanted(),
        Layout.incremental_cifar,
        [4],
    ),
    "fallback": (
        ["checkpoint_index-0_epoch-5.pt", "checkpoint_original_index-0_epoch-6.pt"],
        Wanted(),
        Layout.incremental_cifar,
        [5],
    ),
    "last fallback": (["checkpoint_original_index-0_epoch-6.pt"], Wanted(), Layout.incremental_cifar, [6]),
    "ordered": (
        ["checkpoint_low_to_high_task-0_epoch-199.pt", "checkpoint_low_to_high_task-1_epoch-200.pt"],
        Wanted(),
        Layout.ordered_cifar,
        [199, 200],
    ),
    "noisy": ([NOISY.format(1, 0, "0.1"), NOISY.format(1, 199, "1e-1")], Wanted(), Layout.noisy_cifar, [1, 200]),
    "noise as a number": (
        [NOISY.format(1, 0, "0.10"), NOISY.format(1, 0, "0.2"), NOISY.format(2, 4, "0.1")],
        Wanted(run=1, noise=0.1),
        Layout.noisy_cifar,
        [1],
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_names(tmp_path, name):
    names, wanted, layout, epochs = FOLDERS[name]
    found = find_checkpoints(fill(tmp_path, *names), wanted=wanted)
    assert (found.layout, found.epochs()) == (layout, epochs)
    assert [names[int(found.load(e)["weight"])] for e in epochs] == [found.path(e).name for e in epochs]
    assert find_checkpoints(tmp_path, layout, wanted).epochs() == epochs


@pytest.mark.parametrize(
    ("inside", "name"), [("snapshots", "epoch_000003.pt"), ("model_parameters", "index-0_epoch-3.pt")]
)
def test_the_folder_around_them_may_be_given(tmp_path, inside, name):
    fill(tmp_path / inside, name)
    assert find_checkpoints(tmp_path).epochs() == find_checkpoints(tmp_path / inside).epochs() == [3]


REFUSED = [
    ([], Wanted(), "holds no checkpoints that this program knows"),
    (["index-0_epoch-1.pt"], Wanted(index=2), "no checkpoints of index 2 .*; there are: 0"),
    (["index-0_epoch-1.pt", "epoch_000001.pt"], Wanted(), r"several layouts \(run, incremental_cifar\)"),
    ([NOISY.format(1, 0, "0.1"), NOISY.format(2, 0, "0.1")], Wanted(), "choose one by its run: 1, 2"),
    ([NOISY.format(1, 0, "0.1"), NOISY.format(1, 0, "0.2")], Wanted(), "choose one by its noise: 0.1, 0.2"),
    ([NOISY.format(1, 0, "0.1"), NOISY.format(1, 0, "1e-1")], Wanted(), "two files of one epoch: .*0.1.*1e-1"),
    (
        ["checkpoint_low_to_high_task-0_epoch-1.pt", "checkpoint_no_ordering_task-0_epoch-1.pt"],
        Wanted(),
        "choose one by its order: low_to_high, no_ordering",
    ),
]


@pytest.mark.parametrize(("names", "wanted", "text"), REFUSED)
def test_what_is_not_clear_is_refused(tmp_path, names, wanted, text):
    with pytest.raises(RunError, match=text):
        find_checkpoints(fill(tmp_path, *names), wanted=wanted)


def test_an_epoch_that_is_missing(tmp_path):
    found = find_checkpoints(fill(tmp_path, "index-0_epoch-200.pt", "index-0_epoch-0.pt"))
    with pytest.raises(RunError, match=r"no checkpoint after 100 epochs in .*; there are: 0, 200"):
        found.load(100)


def test_an_epoch_of_two_tasks_is_the_earlier_ones(tmp_path):
    """The published program saves the weights again when the next task begins."""
    names = ["checkpoint_no_ordering_task-1_epoch-199.pt", "checkpoint_no_ordering_task-0_epoch-199.pt"]
    found = find_checkpoints(fill(tmp_path, *names))
    assert found.path(199).name == names[1]
    assert found.tasks(199) == [0, 1]


def small(cls=ResNet18) -> nn.Module:
    torch.manual_seed(0)
    return cls(width=4).make((3, 8, 8), 5)


@pytest.mark.parametrize("wrap", [None, "state_dict", "net", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap, prefix):
    saved = small().state_dict()
    state = {prefix + key: tensor for key, tensor in saved.items()}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "a.pt")
    net = ResNet18(width=4).make((3, 8, 8), 5)
    fit(net, read_state(tmp_path / "a.pt"), "a.pt")
    assert all(torch.equal(value, saved[key]) for key, value in net.state_dict().items())


def test_a_prefix_of_some_keys_stays(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.pt")
    assert set(read_state(tmp_path / "a.pt")) == {"module.a", "b"}


class Stranger:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_is_refused_and_not_run(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": Stranger()}))
    torch.save({"weight": torch.zeros(2), "extra": Stranger()}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(RunError, match="is refused: it"):
            read_state(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [{"weight": 1.0}, [torch.zeros(1)], {}, {"state_dict": {}}])
def test_what_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(RunError, match="holds no state dict"):
        read_state(tmp_path / "a.pt")


def test_a_file_cut_short(tmp_path):
    torch.save(small().state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:3000])
    with pytest.raises(RunError, match=r"a\.pt cannot be read as a checkpoint \(PytorchStreamReader [\w ]+\)$"):
        read_state(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"a\.pt cannot be read as a checkpoint \(EOFError\)$"):
        read_state(tmp_path / "a.pt")


def test_what_names_say_of_the_training(tmp_path):
    fill(tmp_path, NOISY.format(3, 0, "0.10"), NOISY.format(3, 4, "1e-1"), NOISY.format(2, 4, "0.2"))
    assert find_checkpoints(tmp_path, wanted=Wanted(run=3)).about == {"run": 3, "noise": 0.1}
    assert find_checkpoints(fill(tmp_path / "own", "epoch_000000.pt")).about == {}


def changed(state: dict, **tensors) -> dict:
    return {key: tensors.get(key.replace(".", "_"), tensor) for key, tensor in state.items()}


def test_the_first_difference_is_named():
    state = small().state_dict()
    without = {key: tensor for key, tensor in state.items() if key not in ("bn1.weight", "fc.bias")}
    for other, text in (
        (without, "its first difference is bn1.weight, which is missing"),
        (changed(state, fc_weight=torch.zeros(6, 32)), r"fc.weight of shape \(6, 32\) where the network has \(5, 32\)"),
        (state | {"more": torch.zeros(1), "most": torch.zeros(1)}, "more, which the network does not have"),
    ):
        with pytest.raises(RunError, match=f"a.pt is of another network than the config: .*{text}"):
            fit(small(), other, "a.pt")


def test_the_other_family_is_told():
    kuangliu, published = small(ResNet18Shortcut), small()
    with pytest.raises(RunError, match=r"first difference is conv1.bias, which is missing; .*net=resnet18_shortcut"):
        fit(published, kuangliu.state_dict(), "a.ckpt")
    with pytest.raises(RunError, match=r"these are the names of net=resnet18$"):
        fit(kuangliu, published.state_dict(), "a.pt")
    assert [family(net.state_dict()) for net in (kuangliu, published, nn.Linear(1, 1))] == [
        "resnet18_shortcut",
        "resnet18",
        "",
    ]


def test_published_checkpoint_goes_round(tmp_path):
    """142 keys and 11,224,932 parameters; the prefix goes, the values stay."""
    torch.manual_seed(0)
    net = ResNet18().make((3, 32, 32), 100)
    (tmp_path / "model_parameters").mkdir()
    state = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    torch.save(state, tmp_path / "model_parameters" / "index-0_epoch-200.pt")
    loaded = find_checkpoints(tmp_path).load(200)
    assert len(loaded) == 142
    assert sum(loaded[name].numel() for name, _ in net.named_parameters()) == 11_224_932
    assert all(torch.equal(loaded[key], tensor) for key, tensor in net.state_dict().items())


def test_outputs_by_class_become_outputs_by_presentation():
    net, order, x = small(), [3, 0, 4, 1, 2], torch.randn(2, 3, 8, 8)
    net.eval()
    with torch.no_grad():
        by_class = net(x)
        fit(net, by_presentation(net.state_dict(), "fc", order), "a.pt")
        assert torch.equal(net(x), by_class[:, order])


def test_outputs_follow_the_order_of_presentation_and_not_its_inverse():
    """Classes 2, 0, 1 presented in turn: output 0 is that of class 2; those not presented come last, ascending."""
    state = {
        "head.weight": torch.arange(5.0)[:, None],
        "head.bias": 10 + torch.arange(5.0),
        "other.bias": torch.ones(5),
    }
    found = by_presentation(state, "head", [2, 0, 1])
    assert found["head.weight"].ravel().tolist() == [2, 0, 1, 3, 4] and found["head.bias"].tolist() == [
        12,
        10,
        11,
        13,
        14,
    ]
    assert torch.equal(found["other.bias"], state["other.bias"])
    assert by_presentation(state, "head", [4, 1])["head.bias"].tolist() == [14, 11, 10, 12, 13]
