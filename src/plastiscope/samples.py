"""`plastiscope-samples`: every per-sample quantity of a run in one table, and what is made of it.

- `plastiscope-samples [merge] RUN [ANALYSIS_FOLDER ...]`: join by id, write RUN/tables/
- `plastiscope-samples groups RUN --by label`: n, mean, std of every quantity by group
- `plastiscope-samples compare RUN --x csl_sum --y memorization`: Pearson, Spearman, cosine, AUROC
- `plastiscope-samples figures RUN`: pictures of the table
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plastiscope.error import ConfigError, DataError, PlastiscopeError, of_the_disk
from plastiscope.measure.classification import AXES, Rule, RuleKind
from plastiscope.run.sample_store import SPLITS
from plastiscope.table.file import Table

COMMANDS = ("merge", "groups", "compare", "figures")
TABLES = ("per_sample.parquet", "per_sample.csv")


def main(arguments: Sequence[str] | None = None) -> None:
    """`plastiscope-samples`: without the name of a command, merge."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "merge")
    options = _parser().parse_args(given)
    try:
        {"merge": _merge, "groups": _groups, "compare": _compare, "figures": _figures}[options.command](options)
    except PlastiscopeError as error:
        print(f"plastiscope-samples: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        told = of_the_disk(error)
        if told is None:
            raise
        print(f"plastiscope-samples: {told}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plastiscope-samples",
        description="Every per-sample quantity of a run in one table, and what is made of it. "
        "`plastiscope-samples RUN` is short for `plastiscope-samples merge RUN`.",
        epilog="A folder called like a command is given as ./merge.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_merge(commands.add_parser("merge", help="join all quantities by sample id and write the table"))
    groups = commands.add_parser("groups", help="n, mean and standard deviation of every quantity by group")
    _add_table(groups)
    groups.add_argument("--by", required=True, metavar="COLUMN", help="such as label, coarse_class, entry_task, code")
    _add_compare(commands.add_parser("compare", help="how well quantities of the samples agree"))
    figures = commands.add_parser("figures", help="draw the table into <run>/figures/samples_*.png")
    _add_table(figures)
    figures.add_argument("--out", type=Path, help="folder of the figures; by default figures/ of the run")
    return parser


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Join every per-sample quantity of a run by sample id: CSL and learning time, curvature, dormancy, tracking, "
        "scores from elsewhere. One row for each (run_id, sample_id); definitions, units, counts of the joins and "
        "thresholds of the codes stand in the metadata."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("beside", type=Path, nargs="*", help="folders that plastiscope-analyze wrote for this run")
    parser.add_argument("--memorization", type=Path, metavar="FILE", help="memorization scores (npz, npy, CSV, JSON)")
    parser.add_argument(
        "--join",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="CSV, Parquet or npz with a column sample_id; with a column epoch too it is summed up first",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; by default RUN/tables")
    parser.add_argument("--csv", action="store_true", help="write CSV instead of Parquet")
    parser.add_argument(
        "--axis",
        type=_axis,
        action="append",
        default=[],
        metavar="AXIS=COLUMN",
        help="which column stands for csl, curvature, dormant or memorization in the codes",
    )
    parser.add_argument(
        "--rule",
        type=_rule,
        action="append",
        default=[],
        metavar="AXIS=KIND:LEVEL",
        help="where an axis is cut: csl=quantile:0.9, memorization=absolute:0.25; default: medians, and 0.25",
    )
    parser.add_argument("--rules-by", metavar="COLUMN", help="thresholds of each group: label, entry_task")
    parser.add_argument(
        "--first-epochs", type=int, metavar="H", help="also csl_first_H: the sum over the first H active epochs"
    )
    parser.add_argument(
        "--no-data", action="store_true", help="do without the data set: no coarse classes, names, probabilities"
    )
    _add_splits(parser)
    parser.add_argument(
        "--unfinished", action="store_true", help="take what there is of a run or an analysis that is not done"
    )
    parser.add_argument("--trust", action="store_true", help="let config.yaml name classes of other packages")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, help="run folder that was merged, or a table (.parquet, .csv)")
    _add_splits(parser)


def _add_splits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train"],
        help="samples that groups, thresholds, agreements and figures are made of; by default those of training",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Pearson, Spearman, cosine and AUROC of quantities of the samples. The cosine is high for any two scores that "
        "are positive: compare it with cosine_shuffled, and judge by Pearson and Spearman."
    )
    _add_table(parser)
    parser.add_argument("--x", required=True, action="extend", nargs="+", metavar="COLUMN", help="one or more columns")
    parser.add_argument("--y", metavar="COLUMN", help="what they are compared with; by default the same in --with")
    parser.add_argument("--with", dest="other", type=Path, help="another run or table, joined by sample id")
    parser.add_argument("--by", metavar="COLUMN", help="also in each group of this column")
    parser.add_argument(
        "--threshold",
        type=float,
        help="from which y a sample counts as positive for AUROC; by default 0.25 for memorization, 1 for flags, "
        "else the median",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV to write; by default beside the table")


def _axis(text: str) -> tuple[str, str]:
    axis, _, column = text.partition("=")
    if axis not in AXES or not column:
        raise argparse.ArgumentTypeError(f"{text}: must be like csl=csl_mean; axes are {', '.join(AXES)}")
    return axis, column


def _rule(text: str) -> tuple[str, Rule]:
    axis, _, rest = text.partition("=")
    kind, _, level = rest.partition(":")
    try:
        rule = Rule(kind=RuleKind(kind), level=float(level))
    except ValueError:
        rule = None
    if axis not in AXES or rule is None or (rule.kind is RuleKind.quantile and not 0 <= rule.level <= 1):
        raise argparse.ArgumentTypeError(
            f"{text}: must be like csl=quantile:0.5 (0 to 1) or memorization=absolute:0.25; axes are {', '.join(AXES)}"
        )
    return axis, rule


def _merge(options: argparse.Namespace) -> None:
    from plastiscope.load import load_run
    from plastiscope.table.codes import CodeRules
    from plastiscope.table.per_sample import Request, make_tables

    request = Request(
        beside=options.beside,
        memorization=options.memorization,
        joins=options.join,
        codes=CodeRules(axes=dict(options.axis), rules=dict(options.rule), by=options.rules_by, splits=options.splits),
        unfinished=options.unfinished,
        needs_data=not options.no_data,
        first_epochs=options.first_epochs,
        suffix=".csv" if options.csv else ".parquet",
    )
    made = make_tables(load_run(options.run, options.trust), options.out or options.run / "tables", request)
    for note in made.notes:
        print(note)
    for path in made.files:
        print(f"wrote {path}")


def _groups(options: argparse.Namespace) -> None:
    from plastiscope.table.per_sample import write_groups

    table = _table(options.table).only(options.splits)
    if options.by not in table:
        raise ConfigError(f"--by {options.by}: there is no such column; there are: {', '.join(table.names)}")
    for path in write_groups(table, [options.by]):
        print(f"wrote {path}")


def _compare(options: argparse.Namespace) -> None:
    from plastiscope.table.compare import compare, join_count

    table = _table(options.table).only(options.splits)
    other = None if options.other is None else _table(options.other).only(options.splits)
    found = compare(table, options.x, options.y, other, options.by, options.threshold)
    if other is not None:
        print(join_count(table, other))
    print(found.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    path = options.out or table.path.with_name(f"compare_{'_'.join(options.x[:3])}_with_{options.y or 'itself'}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(path, index=False)
    print(f"wrote {path}")


def _figures(options: argparse.Namespace) -> None:
    from plastiscope.table.pictures import draw_table

    drawn = draw_table(_table(options.table).only(options.splits), options.out)
    for note in drawn.notes:
        print(note)
    for path in drawn.files:
        print(f"wrote {path}")


def _table(path: Path) -> Table:
    """The table of a run folder, or the file itself.

    Raises:
        DataError: there is none.
        RunError: the run, or an analysis that is in it, has gone on since.
    """
    from plastiscope.table.standing import refuse_stale

    files = [path] if path.is_file() else [path / "tables" / name for name in TABLES]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise DataError(f"{path} holds no table; make it first: plastiscope-samples {path}")
    table = Table(file)
    refuse_stale(table)
    return table
