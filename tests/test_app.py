"""The command line: mistakes give one or two sentences and leave no trace."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from plastiscope import app

QUICK = (
    *("use_wandb=false", "figures=false", "analysis=[]", "num_tasks=1", "epochs=1", "selection=last"),
    *("device=cpu", "threads=1"),
)


@pytest.fixture
def plastiscope(tmp_path, monkeypatch, capsys):
    """Call the console entry in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, entry=app.main) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["plastiscope", *arguments])
        try:
            entry()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
        out, err = capsys.readouterr()
        return code, out, err

    return call


MISTAKES = [
    (["batch_size=abc"], "batch_size: Value 'abc' of type 'str' could not be converted to Integer"),
    (["verbose=maybe"], "verbose: Value 'maybe' is not a valid bool"),
    (["epochs=-1"], "epochs=-1: must be 1 or more"),
    (["epochs=1.5"], "epochs: Value '1.5' of type 'float' could not be converted to Integer"),
    (["learner.lr=-1"], "learner.lr=-1.0: must be 0 or more, and finite"),
    (["snapshots.every=0"], "snapshots.every=0: must be 1 or more, or null"),
    (["selection=best"], "selection: Invalid value 'best', expected one of [val_best, last, test_oracle]"),
    (["learner.betas=0.9"], "learner.betas: must be a list"),
    (["learner.lrr=0.1"], "learner.lrr: there is no such setting; did you mean learner.lr?"),
    (
        ["experiment=incremental_cifar/continual_backprop", "learner=redo"],
        "learner.replacement_rate: experiment=incremental_cifar/continual_backprop sets it, and learner=redo has no "
        "such setting; begin with experiment=incremental_cifar",
    ),
    (
        ["experiment=incremental_cifar/continual_backprop", "learner=redo", "learner.replacement_rate=1"],
        "learner.replacement_rate: there is no such setting",
    ),
    (["lerner.lr=0.1"], "lerner.lr: there is no such setting; did you mean learner.lr?"),
    (["+learner.nesterov=true"], "learner.nesterov: there is no such setting; there are: "),
    (["+foo=1"], "foo: there is no such setting; there are: "),
    (["representation.every=2"], "select it with analysis=[representation]"),
    (["+representation.every=2"], "select it with analysis=[representation]"),
    (["lla.profile=smoke"], "select it with analysis=[lla]"),
    (["analysis=[continual]", "representation.every=2"], "select it with analysis=[continual,representation]"),
    (["experiment=nope"], "experiment=nope: there is no such option. Available options in 'experiment': continual_im"),
    (["experiment=incremental_cifar/cbp"], "incremental_cifar/continual_backprop, incremental_cifar/head_reset"),
    (["launcher=here", "seed=0,1"], "launcher=here: there is no such option. Available options in 'launcher': basic"),
    (["net=resnet19"], "net=resnet19: there is no such option. Available options in 'net': convnet, "),
    (["net=nope"], "Available options in 'net':"),
    (["num_tasks=6"], "num_tasks=6: at most 5 are possible (10 classes, 2 new ones a task)"),
    (["net._target_=plastiscope.net.mlp.Nope"], "cannot be imported"),
    (["learner._target_=torch.nn.Linear"], "must be a dataclass of settings"),
    (["data=cifar100", "data.folder=nowhere", "data.download=false"], "into nowhere/cifar-100-python"),
    (["net=foreign"], "net._target_ is missing"),
    (["analysis=[representatoin]"], "there is no such analysis; did you mean representation?"),
    (["data=null"], "Config group override must be a string or a list"),
    (["threads=100000"], "threads=100000: must be 1 to 1024, or null"),
    (["learner.lr=inf"], "learner.lr=inf: must be 0 or more, and finite"),
    (["name=.."], "name=..: must be a folder name"),
    (
        ["-m", "learner=redo,continual_backprop", "learner.residual_mod=legacy"],
        "learner=redo: learner.residual_mod: there is no such setting; did you mean learner.residual_mode?",
    ),
    (["-m", "learner=redo,l2", "learner.tau=0.2"], "learner=l2: learner.tau: there is no such setting"),
    (["-m", "learner=redo,l3", "learner.tau=0.2"], "learner=l3: there is no such option. Available options in"),
]


@pytest.mark.parametrize(("mistake", "text"), MISTAKES, ids=[" ".join(m) for m, _ in MISTAKES])
def test_mistakes(plastiscope, tmp_path, mistake, text):
    code, _, err = plastiscope(*QUICK, *mistake)
    assert code == 2
    assert text in err
    assert "Traceback" not in err
    assert len(re.findall(r"\n", err.strip())) < 12
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_device_that_is_not_there(plastiscope):
    code, _, err = plastiscope(*QUICK, "device=cuda")
    assert code == 2
    assert "device=cuda: torch finds no such device here; use device=cpu or device=auto" in err


def test_quick_run_prints_its_folder(plastiscope, tmp_path):
    code, out, _ = plastiscope(*QUICK)
    assert code == 0
    (folder,) = (path.parent for path in tmp_path.rglob("run.json"))
    assert not (folder / "figures").exists()
    assert f"done: {folder}" in out
    assert folder.parent.name == "mlp"
    files = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "timings.jsonl", "status.json", "snapshots"} <= files
    assert json.loads((folder / "run.json").read_text())["overrides"] == list(QUICK)


def test_a_setting_that_only_swept_components_have(plastiscope, tmp_path):
    """The default learner, backprop, has no residual_mode."""
    given = ("learner=redo,continual_backprop", "learner.residual_mode=legacy", "learner.lr=0.01")
    code, out, err = plastiscope("-m", *QUICK, *given)
    assert code == 0, err
    configs = [path.read_text() for path in tmp_path.rglob("config.yaml")]
    assert len(configs) == out.count("done: ") == 2
    assert all("residual_mode: legacy" in config for config in configs)


def test_foreign_folder_is_refused(plastiscope, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=mine")
    assert code == 2
    assert "holds files that are not a run's" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_other_settings_are_refused_by_name(plastiscope, tmp_path):
    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=run", "learner.lr=0.07", "net.dropout=0.5")
    assert code == 2
    assert "other settings: net.dropout, learner.lr" in err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_second_process_is_kept_out(plastiscope, tmp_path):
    from plastiscope.run.folder import FolderLock

    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    lock = FolderLock(tmp_path / "run")
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=run", "num_tasks=2")
    lock.release()
    assert code == 2
    assert "another process is working in" in err


def test_loss_that_is_not_finite(plastiscope, tmp_path):
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=run", "learner.lr=1e30", "learner.momentum=0")
    assert code == 2
    found = re.search(r"became NaN or infinite at step (\d+) of epoch 0 of task 0", err)
    assert found is not None
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "became NaN" in status["error"]
    assert [path.name for path in (tmp_path / "run" / "snapshots").iterdir()] == ["epoch_000000.pt"]
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b""


def test_resume_and_status_commands(plastiscope, tmp_path):
    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    code, out, _ = plastiscope("run", "num_tasks=2", entry=app.resume)
    assert code == 0
    assert "going on at task 1, epoch 0" in out
    code, out, _ = plastiscope(".", entry=app.status)
    assert code == 0
    assert re.search(r"done +1 +0 +epoch_loss=.* run", out)
    code, _, err = plastiscope("nowhere", entry=app.status)
    assert (code, "is not a folder" in err) == (2, True)
    code, _, err = plastiscope("nowhere", entry=app.resume)
    assert (code, "is not a run folder" in err) == (2, True)


@pytest.mark.parametrize("stranger", ["antigravity.geohash", "torch.hub.load", "plastiscope.build.import_module"])
def test_config_of_a_stranger_runs_nothing(plastiscope, tmp_path, stranger):
    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("plastiscope.net.mlp.Mlp", stranger))
    code, _, err = plastiscope("run", "num_tasks=2", entry=app.resume)
    assert code == 2
    assert f"wants to run {stranger}" in err
    assert "--trust" in err


def test_full_disk_says_so(plastiscope, tmp_path, monkeypatch):
    """A device without space: writes fail with the operating system's own error."""
    import errno

    from plastiscope.run import snapshots

    def full(path: Path, save: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshots, "write_by", full)
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=run")
    assert code == 2
    assert "no space left on the device that holds" in err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_mistakes_do_not_load_torch():
    """A wrong key is told within the second, before torch is imported."""
    code = "import sys; from plastiscope import app; sys.argv[1:] = ['lerner.lr=1']\ntry: app.main()\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "plastiscope.app", "lerner.lr=1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "lerner.lr: there is no such setting" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_failed_before_it_began_can_be_started_again(plastiscope, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "status.json", "config.yaml", "traceback.txt", ".status.json.1.tmp"):
        (folder / name).write_text("{}")
    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    assert not (folder / "traceback.txt").exists()


@pytest.mark.parametrize(("name", "content"), [("run.json", ""), ("config.yaml", "a: ["), ("config.yaml", "")])
def test_damaged_run_folder_is_refused(plastiscope, tmp_path, name, content):
    assert plastiscope(*QUICK, "hydra.run.dir=run")[0] == 0
    (tmp_path / "run" / name).write_text(content)
    code, _, err = plastiscope(*QUICK, "hydra.run.dir=run", "num_tasks=2")
    assert code == 2
    assert f"{name} is damaged" in err
    assert (tmp_path / "run" / name).read_text() == content


def test_data_that_are_not_finite_are_refused(plastiscope, tmp_path):
    inputs, labels = np.full((20, 4), np.nan, np.float32), np.arange(20) % 10
    np.savez(tmp_path / "nan.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    code, _, err = plastiscope(*QUICK, "data=arrays", "data.file=nan.npz", "data.normalisation=none")
    assert code == 2
    assert "the inputs hold NaN or infinite values" in err
