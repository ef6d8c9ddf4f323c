"""Real runs as one table: single, replicated, swept, running, failed, missing."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from collect.small_runs import epochs, learner, write_run
from plans import make_plan
from plastiscope import app, load_run
from plastiscope.build import sweep_jobs
from plastiscope.collect.export_tree import export
from plastiscope.collect.settings import NOT_OF_TRAINING, read_settings
from plastiscope.collect.table import collect, report, write
from plastiscope.error import DataError, RunError
from plastiscope.experiment import run
from plastiscope.run.folder import FolderLock
from plastiscope.settings import RESUMABLE

SMALL = ("num_tasks=2", "epochs=1", "selection=last", "data.validation_share=0", "threads=1", "analysis=[]")
PERMUTED = ("task_shift_mode=permuted_input", "net.widths=[8]")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A run, a group of seeds, and a run that is nested deeper."""
    folder = tmp_path_factory.mktemp("outputs")
    run(make_plan(*SMALL, "learner.lr=0.01"), folder / "alone", ["learner.lr=0.01"])
    run(make_plan(*SMALL, *PERMUTED, "replicas=2", "seed=5"), folder / "group", ["replicas=2"])
    run(make_plan(*SMALL, "analysis=[representation]", "learner=l2"), folder / "deeper" / "still" / "run")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of six jobs: two fail before they begin, one has left nothing."""
    folder = tmp_path_factory.mktemp("sweep")
    lasting = pytest.MonkeyPatch()
    more = ("use_wandb=false", "figures=false", "device=cpu", f"hydra.sweep.dir={folder}")
    lasting.setattr(sys, "argv", ["plastiscope", "-m", *SMALL, *more, "seed=0,1", "learner.lr=-1,0.1,0.2"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        app.main()
    GlobalHydra.instance().clear()
    lasting.undo()
    (gone,) = (path.parent for path in folder.rglob("config.yaml") if _is(path.parent, 1, 0.2))
    shutil.rmtree(gone)
    return folder


def _is(folder: Path, seed: int, lr: float) -> bool:
    settings = read_settings(folder)
    return (settings.get("seed"), settings.get("learner.lr")) == (seed, lr)


def same(ours: pd.Series, theirs: pd.Series) -> bool:
    """Bit by bit; what was not measured is NaN in both."""
    return np.array_equal(ours.to_numpy(np.float64), theirs.to_numpy(np.float64), equal_nan=True)


def test_the_table_has_every_number_of_every_run(outputs, tmp_path):
    found = collect([outputs])
    files = write(found, tmp_path, csv=True)
    assert [path.name for path in files] == ["runs.csv", "numbers.parquet", "numbers.csv"]
    table = pd.read_parquet(tmp_path / "numbers.parquet")
    folders = [
        outputs / "alone",
        outputs / "deeper/still/run",
        outputs / "group/seed_0005",
        outputs / "group/seed_0006",
    ]
    assert list(dict.fromkeys(table["run"])) == [str(folder) for folder in folders]
    for folder in folders:
        loaded, mine = load_run(folder), table[table["run"] == str(folder)].reset_index(drop=True)
        for logged in (loaded.metrics, loaded.timings):
            assert mine["kind"].tolist() == logged["kind"].tolist()
            for name in logged.columns.drop("kind"):
                assert same(mine[name], logged[name]), name
        assert set(mine["seed"]) == {loaded.config["seed"]} and set(mine["state"]) == {"done"}
        assert set(mine["learner"]) == {loaded.config["learner"]["_target_"].split(".")[-2]}
    again = pd.read_csv(tmp_path / "numbers.csv")
    assert same(again["epoch_loss"], table["epoch_loss"])
    assert [*again] == [*table]


def test_the_table_is_ready_for_groupby(outputs, tmp_path):
    write(collect([outputs]), tmp_path)
    table = pd.read_parquet(tmp_path / "numbers.parquet")
    means = table[table.kind == "task_end"].groupby("learner")["task_test_accuracy"].mean()
    assert means.index.tolist() == ["backprop", "l2"] and (means > 0.1).all()
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert runs["seed"].tolist() == [0, 0, 5, 6] and runs["overrides"].fillna("").tolist()[0] == "learner.lr=0.01"
    assert runs["replica_of"].fillna("").tolist()[2:] == [str(outputs / "group")] * 2
    assert {"task_shift_mode", "learner", "net.widths"} <= {*runs}
    assert not {"seed.1", "num_tasks", "replicas", "device"} & {*runs}


def test_only_some_numbers(outputs):
    some = collect([outputs], keys=["representation/weights/*", "test_accuracy"]).numbers().column_names
    assert "test_accuracy" in some and "representation/weights/total/weight_norm" in some
    assert "epoch_loss" not in some and "epoch_runtime" not in some and "global_epoch" in some


def test_a_sweep_says_what_is_missing_and_what_has_failed(sweep):
    found = collect([sweep])
    lines = report(found)
    assert lines[0] == "6 runs: 3 done, 2 failed, 1 missing"
    assert lines[1].endswith("multirun.yaml: 5 of 6 jobs have begun")
    failed = [line for line in lines if line.startswith("failed: ")]
    assert len(failed) == 2 and all("learner.lr=-1.0: must be 0 or more" in line for line in failed)
    assert all("learner.lr=-1," in line and "seed=" in line for line in failed)
    (missing,) = (line for line in lines if line.startswith("missing: "))
    assert "seed=1" in missing and "learner.lr=0.2" in missing
    assert {run.seed for run in found.runs if run.state in ("failed", "missing")} == {0, 1}
    table = found.table_of_runs().to_pydict()
    assert sorted(table["state"]) == ["done", "done", "done", "failed", "failed", "missing"]


def test_runs_of_an_earlier_sweep_are_told_apart(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "sweep")
    write_run(tmp_path / "sweep" / "mlp" / "sweep" / "aaaaaaaaaaaa", epochs(1, epoch_loss=[1.0]), learner=learner("l2"))
    lines = report(collect([tmp_path / "sweep"]))
    assert "5 of 6 jobs have begun; 1 runs beside them are of earlier sweeps" in lines[1]
    assert any(line.startswith("runs differ in learner: ") for line in lines)


@pytest.fixture
def experiments(tmp_path):
    """What a sweep over two experiments and two seeds leaves: its list lies with the first name, one job is missing."""
    asked = ["experiment=digits,slowly_changing_regression", "seed=0,1"]
    naming = {"kv_sep": "=", "item_sep": ",", "exclude_keys": []}

    def begin(name, number, seed):
        job = sweep_jobs(asked, naming)[number]
        write_run(
            tmp_path / name / "mlp" / "sweep" / job.folder, epochs(1, loss=[1.0]), seed=seed,
            about={"overrides": job.overrides},
        )  # fmt: skip

    (tmp_path / "digits").mkdir()
    content = {"hydra": {"overrides": {"task": asked}, "job": {"config": {"override_dirname": naming}}}}
    (tmp_path / "digits" / "multirun.yaml").write_text(yaml.safe_dump(content))
    begin("digits", 0, 0)
    begin("slowly_changing_regression", 2, 0)
    begin("slowly_changing_regression", 3, 1)
    return tmp_path


def test_jobs_of_a_sweep_over_experiments_lie_in_folders_of_their_names(experiments):
    lines = report(collect([experiments]))
    assert lines[0] == "4 runs: 3 done, 1 missing"
    assert lines[1].endswith("digits/multirun.yaml: 3 of 4 jobs have begun")
    (missing,) = (line for line in lines if line.startswith("missing: "))
    assert "experiment=digits seed=1" in missing
    alone = report(collect([experiments / "digits"]))
    assert alone[0] == "4 runs: 1 done, 3 missing"  # the others are not among what was given


def test_a_sweep_that_shares_a_job_with_another_finds_it_too(experiments):
    """The second experiment has been swept before by itself, and its runs were left as they are."""
    content = yaml.safe_load((experiments / "digits" / "multirun.yaml").read_text())
    content["hydra"]["overrides"]["task"] = ["experiment=slowly_changing_regression", "seed=0,1"]
    (experiments / "slowly_changing_regression" / "multirun.yaml").write_text(yaml.safe_dump(content))
    lines = report(collect([experiments]))
    assert lines[0] == "4 runs: 3 done, 1 missing"
    assert [line.rpartition("/")[2] for line in lines[1:3]] == [
        "multirun.yaml: 3 of 4 jobs have begun", "multirun.yaml: 2 of 2 jobs have begun",
    ]  # fmt: skip


def test_jobs_are_found_among_all_that_is_collected(experiments):
    """The runs of one name lie far from the list."""
    here, away = experiments / "one" / "digits", experiments / "another" / "disk"
    shutil.copytree(experiments / "digits", here)
    shutil.copytree(experiments / "slowly_changing_regression", away)
    assert report(collect([here, away]))[0] == "4 runs: 3 done, 1 missing"


def test_a_copy_of_a_sweep_does_not_stand_for_what_is_missing(experiments, tmp_path):
    """Two machines' folders side by side: a job that one of them lacks is missing there, though the other has it."""
    whole, lacking = tmp_path / "a" / "here", tmp_path / "b" / "there"
    for place in (whole, lacking):
        shutil.copytree(experiments / "digits", place / "digits")
    shutil.rmtree(lacking / "digits" / "mlp")
    lines = report(collect([tmp_path / "a", tmp_path / "b"]))
    assert lines[0] == "8 runs: 1 done, 7 missing"


def test_a_damaged_list_of_jobs(sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "sweep")
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(DataError, match=r"multirun.yaml is damaged"):
        collect([tmp_path / "sweep"])


def test_while_a_run_goes_on(outputs, tmp_path):
    """A line that is half written is left out, and so is the clock's row that is not there yet."""
    shutil.copytree(outputs / "alone", tmp_path / "run")
    for name, cut in (("metrics", 0), ("timings", 30)):
        log = tmp_path / "run" / f"{name}.jsonl"
        whole = log.read_bytes()
        log.write_bytes(whole + whole[:60] if name == "metrics" else whole[:-cut])
    status = tmp_path / "run" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    lock = FolderLock(tmp_path / "run")
    found = collect([tmp_path])
    lock.release()
    (only,) = found.runs
    logged = load_run(outputs / "alone").metrics
    assert only.state == "running" and only.rows.num_rows == len(logged)
    assert only.rows.column("epoch_loss").to_numpy() == pytest.approx(logged["epoch_loss"].to_numpy(), nan_ok=True)
    seconds = only.rows.column("test_evaluation_runtime").to_pylist()
    assert seconds[-1] is None and None not in seconds[:-1]
    assert "running: " in report(found)[1] and "task_idx=1" in report(found)[1]
    assert collect([tmp_path]).runs[0].state == "lost"


def test_a_run_without_a_row_yet(tmp_path):
    write_run(tmp_path / "run", [], state="preempted")
    found = collect([tmp_path])
    assert found.numbers().num_rows == 0
    assert [path.name for path in write(found, tmp_path / "out")] == ["runs.csv"]


def test_members_that_a_group_lacks(outputs, tmp_path):
    shutil.copytree(outputs / "group", tmp_path / "group")
    shutil.rmtree(tmp_path / "group" / "seed_0006")
    states = {run.seed: run.state for run in collect([tmp_path]).runs}
    assert states == {5: "done", 6: "missing"}


def test_numbers_that_are_not_finite_and_columns_of_different_runs(tmp_path):
    write_run(tmp_path / "a", epochs(2, loss=[1, None, 3]), learner=learner("l2", lr=1))
    write_run(tmp_path / "b", epochs(2, other=[1.5]), learner=learner("l2", lr=0.5), threads=3)
    table = collect([tmp_path]).numbers().to_pandas()
    assert table["loss"].tolist() == pytest.approx([1.0, np.nan, 3.0, np.nan], nan_ok=True)
    assert table["other"].tolist() == pytest.approx([np.nan] * 3 + [1.5], nan_ok=True)
    assert table["learner.lr"].tolist() == [1.0, 1.0, 1.0, 0.5] and "threads" not in table


def test_settings_of_different_kinds_become_text(tmp_path):
    for name, value in (("a", 3), ("b", "auto"), ("c", None), ("d", True)):
        write_run(tmp_path / name, epochs(1, loss=[1.0]), learner=learner("redo", count=value))
    assert collect([tmp_path]).numbers().to_pydict()["learner.count"] == ["3", "auto", None, "true"]


@pytest.mark.parametrize(
    ("content", "words"), [(b'{"kind": "epoch", "global_epoch": 0,\n', "damaged"), (b'{"loss": 1.0}\n', "damaged")]
)
def test_damaged_logs(tmp_path, content, words):
    folder = write_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=words):
        collect([tmp_path])


def test_folders_without_runs(tmp_path):
    with pytest.raises(RunError, match=r"no runs below .*: give a folder that holds runs, such as outputs"):
        collect([tmp_path])
    with pytest.raises(RunError, match="is not a folder"):
        collect([tmp_path / "nowhere"])


def test_a_runs_own_parts_hold_no_runs_and_overlapping_folders_count_once(tmp_path):
    run = write_run(tmp_path / "run", epochs(1, loss=[1.0]))
    write_run(run / "snapshots" / "copied", epochs(1, loss=[1.0]))
    write_run(run / "nested", epochs(1, loss=[1.0]), seed=1)
    assert [found.seed for found in collect([tmp_path, run]).runs] == [0, 1]


def test_a_damaged_config(tmp_path):
    folder = write_run(tmp_path / "run", epochs(1, loss=[1.0]))
    (folder / "config.yaml").write_text("seed: 0\nnet: [1, {\n")
    with pytest.raises(DataError, match=r"config.yaml is damaged"):
        collect([tmp_path])


def test_configs_are_read_as_omegaconf_reads_them(outputs):
    """Flat keys block by block against the whole file."""
    from omegaconf import OmegaConf

    from plastiscope.collect.settings import flat

    for folder in (outputs / "alone", outputs / "deeper/still/run"):
        whole = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        assert read_settings(folder) == flat(whole)
        assert read_settings(folder)["learner.eps"] == 1e-8 and read_settings(folder)["data"] == "digits"


def test_what_may_change_on_a_resume_is_no_difference():
    assert {key.split(".")[0] for key in RESUMABLE} <= set(NOT_OF_TRAINING)


def test_real_runs_as_published_results(outputs, tmp_path):
    """The order of the classes is drawn again; single arms have the names of their learners."""
    found = collect([outputs / "alone", outputs / "deeper"])
    made = export(found.runs, tmp_path / "results")
    assert {path.name for path in made.folders} == {"base_deep_learning_system", "l2"}
    stored = np.load(tmp_path / "results/l2/class_order/index-0.npy")
    assert sorted(stored) == [*range(10)]
    assert tuple(stored[:4]) == load_run(outputs / "deeper/still/run").task(1).classes
    rows = load_run(outputs / "deeper/still/run").metrics
    dormant = np.load(tmp_path / "results/l2/next_task_dormant_units_analysis/index-0.npy")
    assert dormant.tolist() == np.float32(rows["representation/next/total/dormant_rate"].dropna()).tolist()
    rank = np.load(tmp_path / "results/l2/next_task_stable_rank_analysis/index-0.npy")
    assert rank.tolist() == rows["representation/next/linear_2/srank_99_l1"].dropna().tolist()
