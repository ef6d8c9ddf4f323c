"""docs/collect.md is true: its commands run one after the other, and so does its Python."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra

from collect.small_runs import write_results
from plastiscope import app
from plastiscope.collect.command import OPTIONS
from plastiscope.collect.published_figures import FIGURES

PAGE = (Path(__file__).parents[2] / "docs" / "collect.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.S | re.M)
ENTRIES = {"plastiscope": app.main, "plastiscope-collect": app.collect, "plastiscope-plot": app.plot}
SMALL = {"num_tasks=3": "num_tasks=2", "epochs=2": "epochs=1", "seed=0,1,2": "seed=0,2"}
MORE = ("use_wandb=false", "figures=false", "device=cpu", "net.widths=[8]", "data.samples_per_class=20")


def call(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(line)
    if program == "plastiscope":
        arguments = [*(SMALL.get(argument, argument) for argument in arguments), *MORE]
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    GlobalHydra.instance().clear()
    ENTRIES[program]()
    GlobalHydra.instance().clear()


def test_the_commands_and_the_python_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study, published, pickles = (body.splitlines() for language, body in BLOCKS if language == "sh")
    (code,) = (body for language, body in BLOCKS if language == "python")
    for line in study:
        call(line, monkeypatch)
    exec(compile(code, "docs/collect.md", "exec"), {})
    call(published[-1], monkeypatch)
    Path("results_of_ours").rename("results")
    for line in published[:-1]:
        call(line, monkeypatch)
    assert "6 runs: 6 published" in capsys.readouterr().out
    write_results(Path("lop/imagenet"), "data/bp", 0, 0, {"test_accuracies": np.full((3, 2), 0.5)})
    write_results(Path("lop/slowly_changing_regression"), "data/sgd/bp/relu", 0, 0, {"errs": np.ones(40_000)})
    for line in pickles:
        call(line, monkeypatch)
    assert len(pd.read_parquet("tables/numbers.parquet")) == 6
    assert Path("lop/slowly_changing_regression/data/figures/binned_error.png").exists()
    ours, theirs = (Path(f"{place}/figures/relative_accuracy.csv") for place in ("outputs/study", "results"))
    left, right = pd.read_csv(ours), pd.read_csv(theirs)
    assert left["group"].tolist() == right["group"].tolist() == ["learner=backprop"] * 2 + ["learner=l2"] * 2
    assert left["mean"].tolist() == pytest.approx(right["mean"].tolist(), abs=1e-4)


def test_the_page_names_every_figure_and_every_argument():
    assert all(f"| `{name}` |" in PAGE for name in FIGURES)
    assert all(re.search(rf"`{option}[=`]", PAGE) for option in OPTIONS)
