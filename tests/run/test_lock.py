"""Locks and who is there, also by the rules of NFS: who is held, who has died, who has left, and second starts."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from plastiscope.error import RunError
from plastiscope.run import roster
from plastiscope.run.folder import FolderLock, is_locked
from plastiscope.run.lock import is_held, take
from plastiscope.run.roster import Roster

REAL = fcntl.flock


def as_on_nfs(file, operation: int) -> None:
    """An exclusive lock wants a descriptor that may write, a shared one a descriptor that may read (man 2 flock)."""
    access = fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
    wrong = {fcntl.LOCK_EX: os.O_RDONLY, fcntl.LOCK_SH: os.O_WRONLY}[operation & ~fcntl.LOCK_NB]
    if access == wrong:
        raise OSError(errno.EBADF, "Bad file descriptor")
    REAL(file, operation)


@pytest.fixture(params=["local", "nfs"])
def disk(request, monkeypatch):
    if request.param == "nfs":
        monkeypatch.setattr(fcntl, "flock", as_on_nfs)


def test_a_lock_is_held_until_its_holder_has_gone(disk, tmp_path):
    held = take(tmp_path / "deep" / "lock")
    assert is_held(tmp_path / "deep" / "lock")
    assert take(tmp_path / "deep" / "lock", 0.0) is None
    held.close()
    assert not is_held(tmp_path / "deep" / "lock")
    with pytest.raises(FileNotFoundError):
        is_held(tmp_path / "none")


def test_a_folder_is_locked_until_its_process_has_gone(disk, tmp_path):
    lock = FolderLock(tmp_path / "run")
    assert is_locked(tmp_path / "run")
    with pytest.raises(RunError, match="another process is working in"):
        FolderLock(tmp_path / "run")
    lock.release()
    assert not is_locked(tmp_path / "run")
    assert not is_locked(tmp_path / "none")


def test_who_only_looks_disturbs_nobody(tmp_path):
    """The lock of one who asks is let go of at once; a start waits for it."""
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as looking:
        REAL(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: REAL(looking, fcntl.LOCK_UN)).start()
        held = take(tmp_path / "lock", 30.0)
    assert held is not None
    held.close()


def test_the_lock_of_a_file_that_was_deleted_is_none(tmp_path, monkeypatch):
    """Between opening and locking the one who had it takes the file away."""
    path, taken = tmp_path / "folder" / "lock", []

    def deleted_once(file, operation: int) -> None:
        REAL(file, operation)
        if not taken:
            path.unlink()
            path.parent.rmdir()
        taken.append(file)

    monkeypatch.setattr(fcntl, "flock", deleted_once)
    held = take(path)
    assert len(taken) == 2
    assert is_held(path)
    held.close()


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch):
    def none(file, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(RunError, match=r"cannot be locked \(No locks available\); choose a folder on"):
        FolderLock(tmp_path / "run")


def enrolled(folder: Path, world: int) -> list[Roster]:
    all_of_them = [Roster(folder, rank, world) for rank in range(world)]
    for one in all_of_them:
        one.sign()
    return all_of_them


def test_a_dead_process_is_named(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(roster, "PATIENCE_S", 0.0)
    first, second, third = enrolled(tmp_path / "there", 3)
    assert first.ask() == "" and third.ask() == ""
    second._own.close()  # as the system does when it dies
    monkeypatch.setattr(roster, "PATIENCE_S", 1.0)
    assert third.ask() == first.ask()
    assert first.ask().startswith("process 1 of 3 (") and str(os.getpid()) in first.ask()
    third._own.close()
    first._own.close()


def test_who_leaves_in_order_is_not_missing_who_fails_is_and_the_last_one_clears(tmp_path, monkeypatch):
    monkeypatch.setattr(roster, "PATIENCE_S", 0.05)
    first, second, third = enrolled(tmp_path / "there", 3)
    third.leave(in_order=True)
    assert first.ask() == ""
    first.leave(in_order=False)
    assert "process 0 of 3" in second.ask() and "process 2" not in second.missing
    assert (tmp_path / "there").exists()
    second.leave(in_order=False)
    assert not (tmp_path / "there").exists()


def test_a_second_start_takes_nothing_from_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(roster, "PATIENCE_S", 0.0)
    first = enrolled(tmp_path / "there", 2)
    before = {path.name: path.read_text() for path in (tmp_path / "there").iterdir()}
    assert before["rank_1"].endswith(f"process id {os.getpid()}")
    second = [Roster(tmp_path / "there", rank, 3) for rank in range(3)]
    assert [one.is_ours for one in second] == [False, False, True]
    for one in second:
        one.leave(in_order=True)
    assert {path.name: path.read_text() for path in (tmp_path / "there").iterdir()} == before
    assert [one.ask() for one in first] == ["", ""]
    for one in first:
        one.leave(in_order=True)
    assert not (tmp_path / "there").exists()


def test_a_follower_that_cannot_stop_ends(tmp_path, monkeypatch, capfd):
    """It hears no signal, as in a call to a machine that is lost."""
    monkeypatch.setattr(roster, "EVERY_S", 0.05)
    monkeypatch.setattr(roster, "GRACE_S", 0.05)
    first, second = enrolled(tmp_path / "there", 2)

    def deaf() -> None:
        first._own.close()  # this process's share of it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with second.watched(signal.SIGUSR2):
            threading.Event().wait(60)

    child = multiprocessing.get_context("fork").Process(target=deaf)
    child.start()
    first.leave(in_order=False)
    child.join(60)
    assert child.exitcode == 2
    assert "plastiscope: process 1 of 2: process 0 of 2 (" in capfd.readouterr().err
    second.leave(in_order=False)
