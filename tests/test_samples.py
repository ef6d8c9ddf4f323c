"""plastiscope-samples on real runs: the table holds what the run stored, joined by id, and other tools can use it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from plans import make_plan
from plastiscope.analysis.aggregation import table as aggregated
from plastiscope.analyze import analyze
from plastiscope.experiment import run
from plastiscope.load import load_run
from plastiscope.measure.classification import classify
from plastiscope.measure.comparison import auroc, pearson, spearman
from plastiscope.run.presentation_log import presented_tasks
from plastiscope.run.status import State, write_status
from plastiscope.samples import main
from plastiscope.table.file import Table
from plastiscope.table.pictures import draw_table
from plastiscope.table.probabilities import write_probabilities
from table.stores import labels_of, write_block

SMALL = ("threads=1", "selection=last", "data.label_noise=0.1", "net.widths=[32,16]")
TASKS = (
    "num_tasks=3",
    "epochs=4",
    "data.samples_per_class=20",
    "analysis=[csl,dormant,tracking]",
    "csl.input_gradient=true",
    "samples.validation=true",
)
NOISY = (
    "task_shift_mode=none",
    "num_tasks=1",
    "epochs=10",
    "data.samples_per_class=80",
    "batch_size=32",
    "analysis=[csl]",
    "csl.mode=both",
)


@pytest.fixture(scope="session")
def tasks_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of two digits each, tracked, every fourth sample also validated."""
    folder = tmp_path_factory.mktemp("samples") / "tasks"
    run(make_plan(*SMALL, *TASKS), folder)
    return folder


@pytest.fixture(scope="session")
def noisy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All digits at once, a tenth of the labels changed; merged."""
    folder = tmp_path_factory.mktemp("samples") / "noisy"
    run(make_plan(*SMALL, *NOISY), folder)
    main([str(folder)])
    return folder


@pytest.fixture
def folder(tasks_run: Path, tmp_path: Path) -> Path:
    """A copy of the run of three tasks, to write into."""
    return Path(shutil.copytree(tasks_run, tmp_path / "run"))


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / "per_sample.parquet")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said when the command is refused: one line, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said or said.startswith("usage")
    return said.splitlines()[-1]


def test_the_table_holds_what_the_run_stored(folder, capsys):
    main([str(folder)])
    table, store = read(folder), load_run(folder).sample_store
    view = load_run(folder).samples("loss")
    assert table.sample_id.tolist() == view.ids.tolist()
    assert table.sample_id.is_unique and (table.run_id == "/".join(folder.resolve().parts[-3:])).all()
    own = aggregated(store)
    train = table[table.split == "train"].reset_index(drop=True)
    assert train.sample_id.tolist() == own["sample_id"].tolist()
    for name in ("csl_active_mean", "csl_sum", "lt_frac", "lt_first", "forgetting_events", "aum", "confidence", "csg"):
        np.testing.assert_array_equal(train[name], own[name], err_msg=name)
    losses = view.values.astype(np.float64)
    np.testing.assert_allclose(table.csl_active_mean, np.nanmean(losses, 0), rtol=1e-6)
    norms = load_run(folder).samples("persample_strict").values
    np.testing.assert_allclose(table.persample_strict_mean, np.nanmean(norms, 0, dtype=np.float64), rtol=1e-6)
    last = [column[np.isfinite(column)][-1] for column in norms.T]
    np.testing.assert_array_equal(table.persample_strict_final, np.array(last))
    assert f"all {len(table)} samples in both" in capsys.readouterr().out


def test_who_the_samples_are(folder):
    main([str(folder)])
    table, last = read(folder), load_run(folder).task(2)
    by_id = table.set_index("sample_id")
    assert set(table.split) == {"train", "validation"}
    train = by_id.loc[last.train.ids.tolist()]
    assert train.split.eq("train").all() and len(train) == (table.split == "train").sum()
    assert train.label.tolist() == last.train.clean_labels.tolist()
    assert train.label_trained.tolist() == last.train.labels.tolist()
    assert train.label_is_noisy.tolist() == (last.train.clean_labels != last.train.labels).tolist()
    assert 0 < train.label_is_noisy.sum() < 20
    for k in range(3):
        new = load_run(folder).task(k).new_train.ids.tolist()
        assert by_id.loc[new].entry_task.eq(k).all()


def test_presentations_are_those_of_the_record(folder):
    main([str(folder)])
    by_id = read(folder).set_index("sample_id")
    seen: dict[int, list[tuple[int, float]]] = {}
    for task in presented_tasks(folder):
        for epoch in range(4):
            for place, row in enumerate(task.order(epoch).tolist()):
                completed = 4 * task.task + epoch + 1
                seen.setdefault(int(task.ids[row]), []).append((completed, place / (len(task.ids) - 1)))
    trained = by_id.loc[list(seen)]
    assert trained.n_presentations.tolist() == [len(times) for times in seen.values()]
    assert trained.first_epoch.tolist() == [times[0][0] for times in seen.values()]
    assert trained.last_epoch.tolist() == [times[-1][0] for times in seen.values()] == [12] * len(seen)
    np.testing.assert_allclose(trained.position_mean, [np.mean([p for _, p in t]) for t in seen.values()], rtol=1e-6)
    validated = by_id[by_id.split == "validation"]
    names = ["n_presentations", "first_epoch", "last_epoch"]
    assert len(validated) and (validated[names].to_numpy() == [0, -1, -1]).all()
    assert validated.position_mean.isna().all()
    assert [str(by_id[name].dtype) for name in names] == ["int32"] * 3


def test_every_column_has_a_definition_and_a_unit(folder):
    main([str(folder), "--first-epochs", "2"])
    path = folder / "tables" / "per_sample.parquet"
    about = json.loads(pq.read_schema(path).metadata[b"plastiscope"])
    assert about == json.loads((folder / "tables" / "per_sample.json").read_text())
    assert set(about["columns"]) == set(pq.read_schema(path).names)
    for name, said in about["columns"].items():
        assert said["definition"] not in ("", name) and said["unit"], name
    assert about["columns"]["csl_first_2"]["definition"].startswith("sum of the loss over the first 2 active epochs")
    assert about["key"] == ["run_id", "sample_id"]
    assert {join["source"]: join["both"] for join in about["joins"]}["run/samples/loss"] == len(read(folder))


def test_codes_and_their_thresholds_are_in_the_table(folder):
    main([str(folder), "--rule", "csl=quantile:0.8", "--axis", "dormant=persample_strict_final"])
    table = read(folder)
    about = json.loads((folder / "tables" / "per_sample.json").read_text())["classification"]
    assert about["axes"] == {"csl": "csl_active_mean", "dormant": "persample_strict_final"}
    trained = table[table.split == "train"]
    threshold = float(np.quantile(trained.csl_active_mean.astype(np.float64), 0.8))
    assert about["thresholds_from"] == ["train"]
    assert about["thresholds"]["csl"] == pytest.approx(threshold, rel=1e-12)
    assert about["rules"]["csl"] == {"kind": "quantile", "level": 0.8}
    high = table.csl_active_mean >= threshold
    assert table.code.str[0].tolist() == ["H" if h else "L" for h in high]
    assert set(table.code.str[1]) == set(table.code.str[3]) == {"-"}  # no curvature, no memorization


def test_thresholds_of_each_entry_task(folder):
    main([str(folder), "--rules-by", "entry_task"])
    table = read(folder)
    about = json.loads((folder / "tables" / "per_sample.json").read_text())["classification"]
    axes = {"csl": table.csl_active_mean.to_numpy(), "dormant": table.persample_strict_mean.to_numpy()}
    is_train = (table.split == "train").to_numpy()
    wanted = classify(axes, groups=table.entry_task.to_numpy(), among=is_train)
    trained = classify({a: v[is_train] for a, v in axes.items()}, groups=table.entry_task.to_numpy()[is_train])
    assert wanted.thresholds == trained.thresholds and wanted.codes[is_train].tolist() == trained.codes.tolist()
    assert table.code.tolist() == wanted.codes.tolist()
    assert list(about["thresholds"]["csl"]) == ["0", "1", "2"]


def test_memorization_is_joined_by_id_and_unknown_is_not_zero(folder, capsys):
    ids = load_run(folder).samples("loss").ids
    known = ids[::2].tolist()
    scores = {str(float(i)): i / 10_000 for i in [*known, 9_000_001, 9_000_002]}  # ids as 12.0
    (folder.parent / "scores.json").write_text(json.dumps(scores))
    main([str(folder), "--memorization", str(folder.parent / "scores.json")])
    table = read(folder).set_index("sample_id")
    assert len(table) == len(ids)  # samples that only the file has are counted, not added
    assert (
        f"{len(known)} samples in both, {len(ids) - len(known)} only in the run, 2 only here, left out"
        in capsys.readouterr().out
    )
    assert table.memorization[known].tolist() == pytest.approx([i / 10_000 for i in known])
    others = table.drop(index=known)
    assert others.memorization.isna().all() and others.code.str[3].eq("?").all()


def test_a_file_of_ones_own_is_joined_and_summed_up(folder, capsys):
    ids = load_run(folder).samples("loss").ids[:3].tolist()
    wide = folder.parent / "wide.csv"
    pd.DataFrame({"sample_id": [float(i) for i in [*ids, 99_999]], "el2n": [0.1, 0.2, 0.3, 0.4]}).to_csv(
        wide, index=False
    )
    long = folder.parent / "long.csv"
    rows = {"sample_id": ids[:1] * 3 + ids[1:2], "epoch": [3, 1, 2, 1], "v": [6.0, 1.0, 2.0, 5.0]}
    pd.DataFrame(rows).to_csv(long, index=False)
    main([str(folder), "--join", str(wide), "--join", str(long)])
    table = read(folder).set_index("sample_id")
    assert table.el2n[ids].tolist() == [0.1, 0.2, 0.3]
    assert table.index[-1] == 99_999 and table.el2n[99_999] == 0.4  # an outer join
    assert table.loc[99_999, ["label", "csl_sum", "split"]].isna().all()
    assert table.v_mean[ids[:2]].tolist() == [3.0, 5.0]
    assert table.v_final[ids[:2]].tolist() == [6.0, 5.0]
    assert f"3 samples in both, {len(table) - 4} only in the run, 1 only here, kept as rows" in capsys.readouterr().out


def test_a_folder_of_analyses_beside_the_run(folder, capsys):
    """A ragged table joins with NaN; a column that both have keeps the folder's name."""
    run_store = load_run(folder)
    ids = run_store.samples("loss").ids
    about = read_labels(folder)
    chosen = np.flatnonzero(about["split"] == 0)[:45]
    some = ids[chosen]
    late = folder.parent / "late"
    label = labels_of(some.tolist(), *(about[name][chosen] for name in ("labels", "labels_trained", "split")))
    values = np.arange(45) / 64
    write_block(late, 0, label, [12], {"input_curv_norm": [values], "persample_strict": [values]})
    main([str(folder), str(late)])
    table = read(folder).set_index("sample_id")
    assert len(table) == len(ids)
    np.testing.assert_array_equal(table.input_curv_norm_mean[some], values)
    assert table.input_curv_norm_mean.drop(index=some).isna().all()
    np.testing.assert_array_equal(table["persample_strict_mean@late"][some], values)
    assert set(table.code.str[1]) == {"H", "L", "?"}
    assert (
        f"late/samples/input_curv_norm: 45 samples in both, {len(ids) - 45} only in the run" in capsys.readouterr().out
    )


def test_weights_that_are_analysed_later_join_the_run(folder):
    """plastiscope-analyze writes beside the run; its per-sample values are of the same samples."""
    out = analyze(folder, ["analysis=[dormant]", "dormant.rules=[persample_rate]"], folder.parent / "later")
    main([str(folder), str(out)])
    table, view = read(folder).set_index("sample_id"), load_run(out).samples("persample_rate")
    assert set(view.epochs_completed.tolist()) == {4, 8, 12}
    np.testing.assert_allclose(
        table.persample_rate_mean[view.ids], np.nanmean(view.values, 0, dtype=np.float64), rtol=1e-6
    )
    assert len(table) == len(load_run(folder).samples("loss").ids)


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    """Labels and splits of all samples, by ascending id."""
    about = load_run(folder).sample_store.block(2).about
    order = np.argsort(about.ids)
    return {name: getattr(about, name)[order] for name in ("labels", "labels_trained", "split")}


@pytest.mark.parametrize("splits", [(), ("train", "validation")])
def test_group_tables(folder, splits):
    chosen = ("--splits", *splits) if splits else ()
    main([str(folder), *chosen])
    table = read(folder)
    table = table[table.split.isin(splits or ("train",))]
    for by in ("label", "entry_task"):
        groups = pd.read_parquet(folder / "tables" / f"by_{by}.parquet")
        for quantity in ("csl_active_mean", "persample_strict_mean", "label_is_noisy", "csl_sum"):
            wanted = (
                table.groupby(by)[quantity]
                .apply(lambda v: v.astype(float))
                .groupby(level=0)
                .agg(["count", "mean", "std"])
            )
            found = groups[groups.quantity == quantity].set_index(by)
            np.testing.assert_array_equal(found.n, wanted["count"])
            np.testing.assert_allclose(found["mean"], wanted["mean"], rtol=1e-6)
            np.testing.assert_allclose(found["std"], wanted["std"], rtol=1e-5)
    assert pd.read_parquet(folder / "tables" / "by_label.parquet").class_name[0] == "0"
    main(["groups", str(folder), "--by", "code", *chosen])
    codes = pd.read_parquet(folder / "tables" / "by_code.parquet")
    assert codes[codes.quantity == "label_quality"].n.sum() == len(table)


def test_coarse_classes(tmp_path):
    random, labels = np.random.default_rng(0), np.tile(np.arange(6), 20)
    arrays = {"x_train": random.random((120, 5), np.float32), "x_test": random.random((6, 5), np.float32)}
    coarse = np.array([2, 0, 1, 1, 0, 2])
    np.savez(tmp_path / "own.npz", y_train=labels, y_test=np.arange(6), coarse_classes=coarse, **arrays)
    data = ("data=arrays", f"data.file={tmp_path / 'own.npz'}", "data.validation_share=0", "selection=last")
    plan = make_plan(*data, "task_shift_mode=none", "num_tasks=1", "epochs=1", "threads=1", "analysis=[csl]")
    run(plan, tmp_path / "run")
    main([str(tmp_path / "run")])
    table = read(tmp_path / "run")
    assert table.coarse_class.tolist() == coarse[labels].tolist() and table.label.tolist() == labels.tolist()
    groups = pd.read_parquet(tmp_path / "run" / "tables" / "by_coarse_class.parquet")
    assert groups[groups.quantity == "csl_sum"].n.tolist() == [40, 40, 40]
    assert groups[groups.quantity == "csl_sum"].coarse_class.tolist() == [0, 1, 2]


def test_csv_says_the_same(folder):
    main([str(folder)])
    parquet = read(folder)
    main([str(folder), "--csv", "--out", str(folder.parent / "out")])
    csv = pd.read_csv(folder.parent / "out" / "per_sample.csv", dtype={"code": str})
    assert (folder.parent / "out" / "by_label.csv").exists()
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False, rtol=1e-6)


def test_a_second_time_gives_the_same_bytes(folder):
    main([str(folder)])
    first = {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
    main([str(folder)])
    assert {path.name: path.read_bytes() for path in (folder / "tables").iterdir()} == first
    assert not [name for name in first if name.startswith(".")]


def test_cleanlab_finds_the_changed_labels(noisy_run):
    """A tenth of the labels are wrong, so chance finds them with precision 0.1 and an AUROC of 0.5."""
    table = read(noisy_run)
    table = table[table.split == "train"].set_index("sample_id")
    probabilities = np.load(noisy_run / "tables" / "probabilities.npy")
    ids = np.load(noisy_run / "tables" / "probabilities_ids.npy")
    given = table.label_trained[ids].to_numpy(np.int64)
    is_noisy = table.label_is_noisy[ids].to_numpy(bool)
    assert is_noisy.mean() == pytest.approx(0.1, abs=0.02)
    assert table.label_quality.between(0, 1).all()
    assert auroc(-table.label_quality[ids].to_numpy(), is_noisy).value > 0.95
    assert auroc(-get_label_quality_scores(given, probabilities), is_noisy).value > 0.9
    issues = find_label_issues(given, probabilities, n_jobs=1)
    assert issues.sum() >= 5 and is_noisy[issues].mean() > 0.8


def test_probabilities_are_those_of_the_final_weights(folder):
    main([str(folder)])
    probabilities = np.load(folder / "tables" / "probabilities.npy", mmap_mode="r")
    ids = np.load(folder / "tables" / "probabilities_ids.npy")
    loaded = load_run(folder)
    task = loaded.task(2)
    batch = task.train.gather(torch.argsort(task.train.ids)[:7])
    with torch.no_grad():
        wanted = torch.softmax(loaded.net(task=2)(batch.inputs)[:, : task.active_outputs], 1)
    assert ids[:7].tolist() == batch.ids.tolist() and (np.diff(ids) > 0).all()
    assert probabilities.shape == (len(task.train), 10)
    np.testing.assert_allclose(probabilities[:7][:, list(task.classes)], wanted, rtol=1e-5)
    others = sorted(set(range(10)) - set(task.classes))
    assert len(others) == 4 and (probabilities[:, others] == 0).all()  # classes that have not entered
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    backwards = replace(task, train=task.train.select(torch.arange(len(task.train)).flip(0)))
    files = write_probabilities(loaded.net(task=2), backwards, 10, folder.parent / "backwards")
    assert np.load(files.ids).tolist() == ids.tolist()
    np.testing.assert_allclose(np.load(files.probabilities), probabilities, rtol=1e-4, atol=1e-6)


def test_compare(noisy_run, capsys):
    main(["compare", str(noisy_run), "--x", "csl_sum", "online_csl_sum", "--y", "label_is_noisy"])
    table = read(noisy_run)
    path = noisy_run / "tables" / "compare_csl_sum_online_csl_sum_with_label_is_noisy.csv"
    found = pd.read_csv(path).set_index("x")
    x, y = table.csl_sum.to_numpy(), table.label_is_noisy.to_numpy()
    assert found.pearson["csl_sum"] == pytest.approx(pearson(x, y).value)
    assert found.spearman["csl_sum"] == pytest.approx(spearman(x, y).value)
    assert found.auroc["csl_sum"] == pytest.approx(auroc(x, y).value) and found.auroc["csl_sum"] > 0.95
    assert found.positives["csl_sum"] == y.sum() and found.n["csl_sum"] == len(table)
    assert abs(found.pearson_shuffled["csl_sum"]) < 4 / math.sqrt(20 * len(table))  # 20 shuffles
    floor = x.mean() * y.mean() / math.sqrt((x.astype(np.float64) ** 2).mean() * y.mean())
    assert found.cosine_shuffled["csl_sum"] == pytest.approx(floor, abs=4 / math.sqrt(20 * len(table)))
    assert "csl_sum" in capsys.readouterr().out


def test_x_may_be_given_again_and_splits_chosen(folder):
    main([str(folder)])
    out = folder.parent / "compare.csv"
    again = ("--x", "csl_sum", "--x", "lt_frac", "aum", "--y", "confidence", "--splits", "validation")
    main(["compare", str(folder), *again, "--out", str(out)])
    found, table = pd.read_csv(out).set_index("x"), read(folder)
    validated = table[table.split == "validation"]
    assert found.index.tolist() == ["csl_sum", "lt_frac", "aum"]
    wanted = pearson(validated.aum.to_numpy(), validated.confidence.to_numpy())
    assert found.pearson["aum"] == pytest.approx(wanted.value) and found.n["aum"] == wanted.n == len(validated)


def test_compare_in_groups_and_with_a_threshold(folder):
    main([str(folder)])
    out = folder.parent / "compare.csv"
    columns = ("--x", "csl_active_mean", "--y", "lt_frac", "--by", "entry_task", "--threshold", "0.5")
    main(["compare", str(folder), *columns, "--out", str(out)])
    found, table = pd.read_csv(out), read(folder)
    table = table[table.split == "train"]
    assert found.entry_task.tolist() == ["all", "0", "1", "2"]
    one = table[table.entry_task == 1]
    row = found[found.entry_task == "1"].iloc[0]
    assert row.n == len(one) and row.spearman == pytest.approx(
        spearman(*(one[c].to_numpy() for c in ("csl_active_mean", "lt_frac"))).value
    )
    assert row.auroc == pytest.approx(auroc(one.csl_active_mean.to_numpy(), one.lt_frac.to_numpy() >= 0.5).value)


def test_two_runs_are_compared_by_id(folder, noisy_run, capsys):
    main([str(folder)])
    table, other = read(folder), read(noisy_run)
    out = folder.parent / "two.csv"
    main(["compare", str(folder), "--x", "csl_active_mean", "--with", str(noisy_run), "--out", str(out)])
    both = table.merge(other, on="sample_id")
    row = pd.read_csv(out).iloc[0]
    assert row.n == both.csl_active_mean_x.notna().sum() == (both.split_x == "train").sum()
    wanted = spearman(both.csl_active_mean_x.to_numpy(), both.csl_active_mean_y.to_numpy())
    assert row.spearman == pytest.approx(wanted.value) and row.y == "csl_active_mean"
    trained = table[table.split == "train"]
    assert len(trained) < len(table), "samples for validation are not compared"
    counts = (
        f"{len(both)} samples in both, {len(trained) - len(both)} only in the run, {len(other) - len(both)} only here"
    )
    assert f"{noisy_run / 'tables' / 'per_sample.parquet'}: {counts}, left out" in capsys.readouterr().out


def test_figures(folder, capsys):
    ids = load_run(folder).samples("loss").ids
    (folder.parent / "scores.json").write_text(json.dumps({str(i): (i % 7) / 6 for i in ids.tolist()}))
    main([str(folder), "--memorization", str(folder.parent / "scores.json")])
    main(["figures", str(folder)])
    drawn = sorted(path.name for path in (folder / "figures").glob("samples_*.png"))
    assert drawn == [f"samples_{name}.png" for name in ("difficulty", "dormancy", "memorization", "order", "pairs")]
    assert "no picture" not in capsys.readouterr().out
    for block in (folder / "samples").iterdir():  # as csl.every=2 keeps them
        marks = np.fromfile(block / "loss.done", np.uint8)
        marks[::2] = 0
        marks.tofile(block / "loss.done")
    drawn = draw_table(Table(folder / "tables" / "per_sample.parquet"), folder.parent / "again")
    assert "samples_order.png" not in [path.name for path in drawn.files]
    assert len(drawn.notes) == 1 and "it needs the loss after two epochs of a task that follow" in drawn.notes[0]


def test_without_the_data_set(folder, capsys):
    main([str(folder), "--no-data"])
    assert not (folder / "tables" / "probabilities.npy").exists()
    assert "class_name" not in pd.read_parquet(folder / "tables" / "by_label.parquet")


def write_csv(path: Path, **columns: list) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_refusals(folder, tmp_path, capsys):
    ids = load_run(folder).samples("loss").ids.tolist()
    assert "is not a run folder" in refusal(capsys, tmp_path / "nothing")
    assert "holds no table; make it first: plastiscope-samples" in refusal(
        capsys, "compare", folder, "--x", "a", "--y", "b"
    )
    assert "there is no folder" in refusal(capsys, folder, tmp_path / "nothing")
    cases = {
        "has no column sample_id (id, v)": write_csv(tmp_path / "1.csv", id=[1], v=[1.0]),
        f"holds sample id {ids[0]} 2 times": write_csv(tmp_path / "2.csv", sample_id=ids[:1] * 2, v=[1.0, 2.0]),
        "ids that are no integers": write_csv(tmp_path / "3.csv", sample_id=[1.5], v=[1.0]),
        f"sample {ids[0]} twice in epoch 1": write_csv(
            tmp_path / "4.csv", sample_id=ids[:1] * 2, epoch=[1, 1], v=[1.0, 2.0]
        ),
        f"another label, first sample {ids[0]}": write_csv(tmp_path / "5.csv", sample_id=ids[:1], label=[77], v=[1.0]),
        "has a column csl_sum": write_csv(tmp_path / "6.csv", sample_id=ids[:1], csl_sum=[1.0]),
        "there is no file": tmp_path / "7.csv",
    }
    for said, path in cases.items():
        assert said in refusal(capsys, folder, "--join", path)
    assert not (folder / "tables" / "per_sample.parquet").exists()
    assert "no such column" in refusal(capsys, folder, "--axis", "csl=nonsense")
    assert "must be like csl=quantile" in refusal(capsys, folder, "--rule", "csl=quantile:3")
    assert "nothing of the run is measured on this axis" in refusal(capsys, folder, "--rule", "curvature=absolute:1")
    assert "thresholds by split: must be" in refusal(capsys, folder, "--rules-by", "split")
    main([str(folder)])
    assert "has no column nonsense; there are: run_id" in refusal(
        capsys, "compare", folder, "--x", "nonsense", "--y", "csl_sum"
    )
    assert "does not hold numbers" in refusal(capsys, "compare", folder, "--x", "split", "--y", "csl_sum")
    assert "compare needs --y" in refusal(capsys, "compare", folder, "--x", "csl_sum")
    assert "there is no such column" in refusal(capsys, "groups", folder, "--by", "nonsense")
    table = read(folder).assign(label=lambda t: t.label + 1)
    table.to_parquet(tmp_path / "other.parquet")
    said = refusal(capsys, "compare", folder, "--x", "csl_sum", "--with", tmp_path / "other.parquet")
    assert "another label, first sample" in said


def test_a_run_without_per_sample_values(tmp_path, capsys):
    run(
        make_plan("threads=1", "num_tasks=1", "epochs=1", "data.samples_per_class=12", "analysis=[]"), tmp_path / "bare"
    )
    assert "has no per-sample values; train with analysis=[csl]" in refusal(capsys, tmp_path / "bare")


def test_a_run_that_is_not_done(folder, capsys):
    """It is refused; what there is of it is read on request, without the epoch of which a row is missing."""
    whole = aggregated(load_run(folder).sample_store, epochs=range(1, 12))
    write_status(folder, State.preempted)
    said = refusal(capsys, folder)
    assert "is not finished (preempted): resume it" in said and "--unfinished" in said
    marks = folder / "samples" / "task_0002" / "margin.done"
    marks.write_bytes(marks.read_bytes()[:-1] + b"\0")
    main([str(folder), "--unfinished"])
    assert "is not finished (preempted): what there is was read" in capsys.readouterr().out
    table = read(folder)
    trained = table[table.split == "train"]
    for name in ("csl_sum", "aum", "confidence", "lt_frac"):
        np.testing.assert_array_equal(trained[name], whole[name], err_msg=name)
    assert stood(folder) == {str(folder): {"state": "preempted", "epochs": 12, "last_epoch": 12}}
    write_status(folder, State.done)
    assert "lacks rows of 1 epochs, the first of epoch 12: resume what wrote it" in refusal(capsys, folder)


def test_an_analysis_beside_the_run_that_is_not_done(folder, capsys):
    out = analyze(folder, ["analysis=[dormant]", "dormant.rules=[persample_rate]"], folder.parent / "later")
    write_status(out, State.failed)
    assert "later is not finished (failed)" in refusal(capsys, folder, out)
    main([str(folder), str(out), "--unfinished"])
    assert stood(folder)[str(out)] == {"state": "failed", "epochs": 3, "last_epoch": 12}


def stood(folder: Path) -> dict:
    """How far the run and the analyses beside it had got when its table was made."""
    return json.loads((folder / "tables" / "per_sample.json").read_text())["standings"]


def test_a_table_of_a_run_that_has_gone_on_is_refused(folder, capsys):
    """By what is made of it, until it is made anew; the run may have been moved, and the table may lie elsewhere."""
    elsewhere = folder.parent / "elsewhere"
    write_status(folder, State.preempted)
    main([str(folder), "--unfinished"])
    main(["groups", str(folder), "--by", "label"])
    write_status(folder, State.done)
    main([str(folder), "--out", str(elsewhere)])
    moved = folder.rename(folder.parent / "moved")
    for command in (("figures",), ("groups", "--by", "label"), ("compare", "--x", "aum", "--y", "csl_sum")):
        said = refusal(capsys, command[0], moved, *command[1:])
        assert f"was made when {moved} was preempted, with values of 12 epochs up to 12; now it is done, with" in said
        assert said.endswith(f"with the options that it had: plastiscope-samples {moved}")
    main([str(moved), "--no-data"])
    main(["groups", str(moved), "--by", "label"])
    table = str(elsewhere / "per_sample.parquet")
    main(["groups", table, "--by", "label"])  # the run is no longer where it was: nothing can be said of it
    moved.rename(folder)
    main(["groups", table, "--by", "label"])
    for marks in (folder / "samples" / "task_0002").glob("*.done"):
        marks.write_bytes(marks.read_bytes()[:-1] + b"\0")
    assert "now it is done, with values of 11 epochs up to 11." in refusal(capsys, "figures", table)


def test_an_analysis_that_is_older_than_weights_of_the_run_is_refused(folder, capsys):
    """Weights that it was not to look at are only told."""
    last = folder / "snapshots" / "epoch_000012.pt"
    content = last.read_bytes()
    last.unlink()
    write_status(folder, State.preempted)
    asked, out = ["analysis=[dormant]", "dormant.rules=[persample_rate]"], folder.parent / "later"
    analyze(folder, asked, out)
    last.write_bytes(content)
    write_status(folder, State.done)
    said = refusal(capsys, folder, out)
    assert "later does not cover the weights that the run has saved since, after 12 epochs: give the same" in said
    main([str(folder), str(out), "--unfinished"])
    told = "later covers fewer weights than the run has saved; not those after"
    assert f"{told} 12 epochs" in capsys.readouterr().out
    assert stood(folder)[str(out)] == {"state": "done", "epochs": 2, "last_epoch": 8}
    analyze(folder, asked, out)
    assert "was made when" in refusal(capsys, "figures", folder)
    main([str(folder), str(out)])
    assert "covers fewer weights" not in capsys.readouterr().out
    part = analyze(folder, [*asked, "replay.start=5", "replay.end=8"], folder.parent / "part")
    main([str(folder), str(part)])
    assert f"{told.replace('later', 'part')} 0, 4, 12 epochs" in capsys.readouterr().out


def test_label_quality_of_a_run_that_was_scored_online(noisy_run, tmp_path):
    """Without a pass after the epochs it is the confidence in the training steps; with one, the one of that pass."""
    online = Path(shutil.copytree(noisy_run, tmp_path / "online"))
    for path in (online / "samples").glob("task_*/*"):
        if path.stem in ("loss", "correct", "margin"):
            path.unlink()
    main([str(online)])
    table = read(online)
    assert "confidence" not in table and table.label_quality.notna().all()
    np.testing.assert_array_equal(table.label_quality, table.online_confidence.clip(0, 1))
    about = json.loads((online / "tables" / "per_sample.json").read_text())["columns"]
    assert "online_confidence" in about["label_quality"]["definition"]
    both = read(noisy_run)
    np.testing.assert_array_equal(both.label_quality, both.confidence.clip(0, 1))


def test_scores_by_row_of_other_data_are_refused(folder, capsys):
    """By the size of the training file, where the rows of it are the ids."""
    rows = json.loads((folder / "run.json").read_text())["data"]["file_train"]
    scores = folder.parent / "scores.npy"
    np.save(scores, np.arange(rows) / rows)
    main([str(folder), "--memorization", str(scores)])
    table = read(folder)
    np.testing.assert_allclose(table.memorization, table.sample_id / rows)
    np.save(scores, np.linspace(0, 1, 50_000))
    said = refusal(capsys, folder, "--memorization", scores)
    assert f"holds 50000 scores in official order, and the training file of the data {rows} samples" in said
    about = json.loads((folder / "run.json").read_text())
    about["data"]["id_kind"] = "ids_file"
    (folder / "run.json").write_text(json.dumps(about))
    main([str(folder), "--memorization", str(scores)])
    assert len(read(folder)) == len(table)


def test_labels_of_another_data_set_are_refused(folder, capsys):
    ids = load_run(folder).samples("loss").ids[:2].tolist()
    write_block(folder.parent / "wrong", 0, labels_of(ids, labels=[88, 88]), [1], {"persample_rate": [[0.1, 0.2]]})
    assert "these are not the same data" in refusal(capsys, folder, folder.parent / "wrong")
