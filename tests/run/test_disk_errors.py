"""Full disks, used-up quotas, faults and folders that nobody may write into: told in a line; what is saved stays."""

import errno
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from plans import make_plan
from plastiscope import app, samples
from plastiscope.error import RunError, of_the_disk
from plastiscope.experiment import run
from plastiscope.run import storage
from plastiscope.run.status import read_status
from run.test_resume import assert_equal_runs

SMALL = (
    *("num_tasks=2", "epochs=12", "threads=1", "net.widths=[4]", "data.samples_per_class=2", "batch_size=64"),
    *("selection=last", "analysis=[csl,representation]", "checkpoint_every_s=0"),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(make_plan(*SMALL), folder)
    return folder


def with_files_up_to(size: int, work: Callable[[], object]) -> tuple[int, str]:
    """Exit code and stderr of `work` in a process that may write no file beyond so many bytes."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the tests' own process has none of
        child = os.fork()
    if child == 0:
        code = 3
        try:
            os.dup2(writing, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            app._exit_on_error(work)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def test_a_log_that_may_not_grow_is_told_and_the_run_goes_on_from_there(undisturbed, tmp_path):
    folder = tmp_path / "run"
    largest = max(path.stat().st_size for path in undisturbed.rglob("*") if path.name != "metrics.jsonl")
    limit = (undisturbed / "metrics.jsonl").stat().st_size - 100
    assert largest < limit
    code, said = with_files_up_to(limit, lambda: run(make_plan(*SMALL), folder))
    assert code == 2, said
    told = f"a file would be larger than this process may write (ulimit -f) in {folder}; raise that and start"
    assert said == f"plastiscope: {told} the same command again\n"
    status = read_status(folder)
    assert (status["state"], status["error"].startswith(told)) == ("failed", True)
    assert "File too large" in (folder / "traceback.txt").read_text()
    assert len((folder / "metrics.jsonl").read_bytes()) <= limit
    done = status["global_epoch"]
    assert done > 12
    run(make_plan(*SMALL), folder)
    assert_equal_runs(undisturbed, folder)


def test_where_not_even_the_status_can_be_written_the_reason_is_told(tmp_path):
    code, said = with_files_up_to(0, lambda: run(make_plan(*SMALL), tmp_path / "run"))
    assert code == 2
    assert said.startswith("plastiscope: a file would be larger than") and said.count("\n") == 1
    assert read_status(tmp_path / "run")["state"] == "unknown"
    run(make_plan(*SMALL, "num_tasks=1", "epochs=1"), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"


TOLD = {
    errno.ENOSPC: "no space left on the device that holds {folder}; make room and start the same command again",
    errno.EDQUOT: "the disk quota is used up for {folder}; make room or have it raised and start the same command",
    errno.EIO: "Input/output error; what was saved before stands: when the disk answers again, start the same command",
    errno.EROFS: "Read-only file system; choose another folder (hydra.run.dir=..., --out), or have its permissions",
}


@pytest.mark.parametrize("code", TOLD)
@pytest.mark.parametrize("only_once", [False, True])
@pytest.mark.parametrize("n", [40, 101])
def test_a_disk_that_refuses_from_some_moment_on(undisturbed, tmp_path, monkeypatch, code, only_once, n):
    """Every file is flushed to the disk when it is written; there a full disk or a quota shows at the latest."""
    folder, flushed = tmp_path / "run", 0

    def refuse(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed == n or (flushed > n and not only_once):
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", refuse)
        with pytest.raises(RunError) as stopped:
            run(make_plan(*SMALL), folder)
    assert TOLD[code].format(folder=folder) in str(stopped.value)
    assert str(folder) in str(stopped.value)
    assert read_status(folder)["state"] == ("failed" if only_once else "lost")
    assert list((folder / "checkpoint").glob("*.json"))
    run(make_plan(*SMALL), folder)
    assert_equal_runs(undisturbed, folder)


@pytest.mark.parametrize("mode", ["run", "sweep"])
@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("/sys/nobody", "choose another folder (hydra.run.dir=..., --out), or"),
        ("a_file/run", "Not a directory; see that the"),
    ],
)
def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, capsys, mode, where, told):
    """Not even root makes folders there; it is Hydra that tries first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    arguments = ["-m", "seed=0,1", f"hydra.sweep.dir={where}"] if mode == "sweep" else [f"hydra.run.dir={where}"]
    monkeypatch.setattr(sys, "argv", ["plastiscope", *arguments, "analysis=[]"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("plastiscope: ") and said.count("\n") == 1
    assert where.split("/")[-1] in said and told in said


def test_a_table_that_cannot_be_written(undisturbed, capsys):
    with pytest.raises(SystemExit) as stopped:
        samples.main(["merge", str(undisturbed), "--out", "/sys/nobody"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("plastiscope-samples: /sys/nobody: ") and "--out" in said and said.count("\n") == 1


def test_other_errors_of_the_system():
    open_files = OSError(errno.EMFILE, "Too many open files", "x.npy")
    assert "ulimit -n" in str(of_the_disk(open_files))
    assert str(of_the_disk(OSError(errno.ENOSPC, "No space left"))).startswith("no space left on the device that holds")
    assert of_the_disk(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Path("run")) is None
    assert of_the_disk(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")) is None
