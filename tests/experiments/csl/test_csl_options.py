"""Every command has the published options with the published defaults, and takes published spellings."""

import argparse
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

RESULTS = ["--results_dir", "r", "--data_path", "d"]
MODELS = ["--data_path", "d", "--model_dir", "m"]
AGGREGATION = {
    "dataset": "cifar100",
    "run_idx": 1,
    "noise_level": 0.01,
    "start_epoch": 0,
    "end_epoch": 199,
    "output_dir": Path("results/csl"),
    "strict": False,
    "index": None,
}
COMMANDS = {
    "compute_csl": ([], AGGREGATION | {"input_dir": Path("results/per_sample_losses"), "epoch_step": 1}),
    "csl_pipeline": (
        [],
        AGGREGATION
        | {
            "source": "per_samples", "input_dir": None, "results_dir": None, "data_path": None, "experiment_index": 0,
            "per_sample_out_dir": None, "batch_size": 256, "num_workers": 4, "device": "auto", "compute_grad": True,
        },
    ),
    "score_cifar100_loss": (
        [],
        {
            "run_idx": 1, "noise_level": 0.01, "start_epoch": 0, "end_epoch": 199, "epoch_step": None,
            "weight_decay": 0.0, "dataset": "cifar100", "data_dir": Path("data"), "batch_size": 256, "num_workers": 4,
            "parallel": False, "checkpoint_dir": Path("pretrained/cifar100"),
            "output_dir": Path("results/per_sample_losses"), "grad_kind": "input", "legacy": False, "strict": False,
            "normalization": "csl_mem",
        },
    ),
    "score_incremental_cifar_loss": (
        RESULTS,
        {
            "experiment_index": 0, "start_epoch": None, "end_epoch": None, "batch_size": 256, "num_workers": 4,
            "device": "auto", "output_dir": None, "compute_grad": True, "strict": False, "normalization": "lop",
        },
    ),
    "per_image_curve": (
        ["--data_path", "d", "--model_path", "m", "--save_dir", "s"],
        {"allowed_classes": None, "strict": False, "scaling": "published"},
    ),
    "multi_gpu_dormant_analysis": (
        [*MODELS, "--save_base_dir", "s"],
        {
            "start_epoch": None, "end_epoch": None, "step": None, "class_order_file": None, "experiment_index": 0,
            "dormant_unit_threshold": 0.01, "strict": False,
        },
    ),
    "multi_gpu_curvature_analysis": (
        [*MODELS, "--save_base_dir", "s"],
        {"start_epoch": 0, "end_epoch": 4000, "step": 200, "experiment_index": 0, "strict": False},
    ),
    "multi_gpu_loss_generation": (
        [*MODELS, "--output_dir", "o"],
        {
            "class_order_file": None, "experiment_index": 0, "start_epoch": 1, "end_epoch": 4000, "batch_size": 256,
            "num_workers": 4, "compute_grad": False, "strict": False,
        },
    ),
    "multi_gpu_csl_analysis": (
        ["--input_dir", "i", "--output_dir", "o"],
        {
            "data_path": None, "class_order_file": None, "experiment_index": 0, "start_epoch": None, "end_epoch": None,
            "dataset": "cifar100", "strict": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_published_defaults(command):
    needed, defaults = COMMANDS[command]
    options = vars(importlib.import_module(command).read_options(needed))
    assert {name: options[name] for name in defaults} == defaults


@pytest.mark.parametrize("command", ["per_image_curve", "score_incremental_cifar_loss", "multi_gpu_csl_analysis"])
def test_what_is_needed_is_asked_for_with_exit_code_2(command, capsys):
    with pytest.raises(SystemExit) as told:
        importlib.import_module(command).read_options([])
    assert told.value.code == 2 and "are required" in capsys.readouterr().err


@pytest.mark.parametrize("text, value", [("true", True), ("False", False), ("1", True), ("no", False), ("T", True)])
def test_published_booleans(text, value):
    options = importlib.import_module("score_incremental_cifar_loss").read_options([*RESULTS, "--compute_grad", text])
    assert options.compute_grad is value
    with pytest.raises(argparse.ArgumentTypeError, match="neither true nor false"):
        importlib.import_module("published_options").truth("maybe")


def test_the_penalty_is_added_on_request_alone():
    read = importlib.import_module("score_cifar100_loss").read_options
    assert read(["--legacy"]).weight_decay == 1e-4
    assert read(["--legacy", "--weight_decay", "0.5"]).weight_decay == 0.5


def test_the_first_fifty_images_of_a_class_are_for_validation():
    labels = torch.tensor([7, 3] * 60)
    found = importlib.import_module("checkpoint_scoring").is_validation(SimpleNamespace(clean_labels=labels))
    assert found.tolist() == [True] * 100 + [False] * 20
