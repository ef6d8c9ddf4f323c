"""Per-sample losses and gradient norms of noisy-label CIFAR-100 checkpoints, under the published name and options.

    python experiments/csl/score_cifar100_loss.py --run_idx 1 --noise_level 0.01 --checkpoint_dir pretrained/cifar100

Reads cifar100_resnet18_noisy_idx_{r}_epoch_{E}_noise_{z}.ckpt, writes scheme B. The published program adds the penalty
weight_decay * sum(theta^2) to every loss, and writes the gradient with respect to the parameters where its documents
say the input: here the penalty comes only with --weight_decay or --legacy, and --grad-kind says which gradient.
"""

import argparse
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from checkpoint_scoring import Claim, Scorer, choose_device, cifar100, losses, score_each
from published_options import add_batches, add_device, add_run_options, add_strict, kept_epochs, run, truth
from torch import Tensor, nn
from torch.func import functional_call

from plastiscope.data.samples import Batch, Samples
from plastiscope.error import DataError
from plastiscope.formats.checkpoints import Layout, Wanted, find_checkpoints
from plastiscope.formats.content import read_vector
from plastiscope.formats.loss_files import loss_name, write_losses
from plastiscope.formats.scoring_facts import facts_path
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.measure.sample_gradient import Engine, parameter_gradient_norms
from plastiscope.run.processes import Part, Processes

LEGACY_WEIGHT_DECAY = 1e-4
DATASET = "cifar100"
ORIGIN = ("checkpoint_dir", "run_idx", "noise_level", "grad_kind", "weight_decay", "normalization", "labels")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the checkpoints."""
    options = read_options(arguments)
    checkpoints = find_checkpoints(
        options.checkpoint_dir, Layout.noisy_cifar, Wanted(index=None, run=options.run_idx, noise=options.noise_level)
    )
    numbers = [completed - 1 for completed in checkpoints.epochs()]  # names count from 0, after the first epoch
    span = (options.start_epoch, options.end_epoch, options.epoch_step)
    kept = kept_epochs(numbers, checkpoints.folder, *span, gap_is_error=options.strict)
    samples = labelled(options)
    scorer = Scorer(samples, None, options.batch_size, Processes())
    run_names = (options.run_idx, options.noise_level)
    path = facts_path(options.output_dir, DATASET, *run_names)
    outputs = [options.output_dir / loss_name("loss", DATASET, epoch, *run_names) for epoch in kept]
    claimed = Claim.make(path, facts(options), ORIGIN, outputs)

    def write(epoch: int, _: Samples, values: Part, __: float) -> Path:
        write_losses(options.output_dir, DATASET, epoch, values["loss"], values["grad"], *run_names)
        return options.output_dir / loss_name("loss", DATASET, epoch, *run_names)

    score = partial(losses_and_gradients, grad_kind=options.grad_kind, weight_decay=options.weight_decay)
    score_each(
        checkpoints, [epoch + 1 for epoch in kept], claimed, scorer, score, write, lambda completed: completed - 1
    )


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser)
    parser.add_argument("--epoch_step", type=int, default=None, help="default: the checkpoints there are")
    parser.add_argument(
        "--weight_decay", type=float, default=None, help="adds weight_decay * sum(theta^2) to each loss"
    )
    parser.add_argument("--dataset", choices=[DATASET], default=DATASET)
    parser.add_argument("--data_dir", type=Path, default=Path("./data"))
    add_batches(parser)
    add_device(parser, "csl_mem")
    parser.add_argument("--parallel", type=truth, default=False, help="accepted and unused")
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("./pretrained/cifar100/"))
    parser.add_argument("--output_dir", type=Path, default=Path("./results/per_sample_losses/"))
    parser.add_argument("--grad-kind", choices=("input", "param"), default="input")
    parser.add_argument("--legacy", action="store_true", help=f"--weight_decay {LEGACY_WEIGHT_DECAY}, as published")
    parser.add_argument("--labels", type=Path, default=None, help="file of the labels that the network was trained on")
    add_strict(parser)
    options = parser.parse_args(arguments)
    if options.weight_decay is None:
        options.weight_decay = LEGACY_WEIGHT_DECAY if options.legacy else 0.0
    return options


def facts(options: argparse.Namespace) -> dict[str, object]:
    """What the files hold."""
    return {
        "checkpoint_dir": str(options.checkpoint_dir.resolve()),
        "run_idx": options.run_idx,
        "noise_level": options.noise_level,
        "mode": "posthoc",
        "grad_kind": options.grad_kind,
        "contains_l2": options.weight_decay != 0,
        "weight_decay": options.weight_decay,
        "logit_scope": "all",
        "split": "train",
        "normalization": options.normalization,
        "labels": None if options.labels is None else str(options.labels.resolve()),
    }


def labelled(options: argparse.Namespace) -> Samples:
    """The training images with the labels that are scored.

    Raises:
        DataError: labels that do not fit; when strict also no labels for a network that was trained on wrong ones.
    """
    samples = cifar100(options.data_dir, options.normalization, choose_device(options.device, Processes()))
    if options.labels is not None:
        labels = read_vector(options.labels, len(samples))
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise DataError(f"{options.labels} must hold one class for each of the {len(samples)} training images.")
        return samples.with_targets(torch.from_numpy(labels.astype("int64")).to(samples.rows.device))
    if options.noise_level > 0:
        text = (
            f"the networks were trained with --noise_level {options.noise_level}, and the clean labels of the data "
            "files are scored, as published; give the labels of the training by --labels"
        )
        if options.strict:
            raise DataError(f"{text}.")
        warnings.warn(text, stacklevel=2)
    return samples


def losses_and_gradients(
    net: nn.Module, batch: Batch, outputs: int, grad_kind: str, weight_decay: float
) -> dict[str, Tensor]:
    """Losses and norms of a batch, of loss_i + weight_decay sum(theta^2); the sum runs over all parameters."""
    values = losses(net, batch, outputs, compute_grad=grad_kind == "input")
    if grad_kind == "param":
        values["grad"] = parameter_norms(net, batch, outputs, weight_decay)
    if weight_decay:
        values["loss"] = values["loss"] + weight_decay * squared_norm(net)
    return values


def parameter_norms(net: nn.Module, batch: Batch, outputs: int, weight_decay: float) -> Tensor:
    """||g_i + 2 wd theta||_2 of each sample, [b], from ||g_i||^2 + 4 wd <g_i, theta> + 4 wd^2 ||theta||^2.

    <g_i, theta> is the derivative of <sum_j v_j g_j, theta> with respect to v_i: a backward through the backward.
    """
    x, y = batch.inputs, batch.targets
    norms = parameter_gradient_norms(net, Loss.cross_entropy, x, y, outputs, engine=Engine.ghost)
    if weight_decay == 0:
        return norms
    theta = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    weights = torch.ones(len(x), device=x.device, requires_grad=True)
    found = per_sample_loss(Loss.cross_entropy, functional_call(net, theta, (x,))[:, :outputs], y)
    gradients = torch.autograd.grad(found @ weights, list(theta.values()), create_graph=True)
    product = torch.stack([(g * p).sum() for g, p in zip(gradients, theta.values(), strict=True)]).sum()
    (along,) = torch.autograd.grad(product, weights)
    squares = norms.double().square() + 4 * weight_decay * along + 4 * weight_decay**2 * squared_norm(net)
    return squares.clamp_min(0).sqrt()


def squared_norm(net: nn.Module) -> float:
    """Sum of the squares of all parameters, biases and batch normalisation included."""
    return sum(p.double().square().sum().item() for p in net.parameters())


if __name__ == "__main__":
    run(main)
