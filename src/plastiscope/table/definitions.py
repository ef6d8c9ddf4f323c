"""What the columns of the table mean, and their units."""

import re
from collections.abc import Mapping

from plastiscope.measure.classification import AXES
from plastiscope.table.source import ID, Column

EPOCHS, LOSS = "epochs", "nats"

IDENTITY_COLUMNS = {
    "run_id": Column("the run: the last three parts of its folder, <name>/<arch>/<time>"),
    ID: Column("position in the official, unshuffled training set, or what the ids file of the data says"),
    "label": Column("class of the data set before label noise"),
    "label_trained": Column("class that the network is told"),
    "label_is_noisy": Column("whether the two differ"),
    "coarse_class": Column("coarse class of `label`"),
    "split": Column("train, validation (never trained on) or test"),
    "entry_task": Column("first task that has the sample"),
}
"""Who a sample is."""

LABEL_QUALITY = Column(
    "confidence, in [0, 1]: mean over the active epochs of the probability of the label that the network is told; "
    "low = the label is doubtful"
)
ONLINE_LABEL_QUALITY = Column(
    f"{LABEL_QUALITY.definition}; from the training steps (online_confidence), as nothing was scored after the epochs"
)

DYNAMICS = {
    "csl_sum": Column("sum of the loss over the kept epochs; NaN if the sample was not scored in all of them", LOSS),
    "csl_mean": Column("csl_sum / number of kept epochs", LOSS),
    "csl_trapz": Column("integral of the loss over the epochs, by the trapezoid rule over the kept ones", LOSS),
    "csl_active_sum": Column("sum of the loss over the epochs in which the class of the sample is in training", LOSS),
    "csl_active_mean": Column("csl_active_sum / n_active", LOSS),
    "n_active": Column("kept epochs in which the sample has a loss", EPOCHS),
    r"csl_first_(\d+)": Column("sum of the loss over the first {0} active epochs; NaN with fewer", LOSS),
    r"csl_task_(\d+)": Column("sum of the loss over the epochs of task {0}", LOSS),
    "csl_all": Column("sum of the loss over all outputs of the network, over all epochs; measures class entry", LOSS),
    "loss_final": Column("loss at the last active epoch", LOSS),
    "lt_frac": Column("learning time: share of the active epochs in which the running mean of the input-gradient norm "
                      "is above its mean over all samples and epochs", "share of epochs"),
    "lt_frac_norm2": Column("lt_frac of the squared norm", "share of epochs"),
    "lt_first": Column("first active epoch whose running mean of the squared norm is at most that mean; NaN: never",
                       EPOCHS),
    "lt_censored": Column("whether lt_first was never reached"),
    "first_learn": Column("number of active epochs before the first in which the sample is classified rightly, 0 = "
                          "rightly at once; never: their number", EPOCHS),
    "learn_forever": Column("number of active epochs before the sample is classified rightly for good, 0 = always "
                            "rightly; wrong in the last one: their number", EPOCHS),
    "never_learned": Column("whether the sample is wrong in all active epochs"),
    "cum_error": Column("1 - correctness: mean 0/1 loss over the active epochs"),
    "correctness": Column("share of the active epochs in which the sample is classified rightly"),
    "forgetting_events": Column("changes from right to wrong between kept epochs; never learned: their number",
                                "events"),
    "csg": Column("sum over the epochs of the squared norm of the loss's gradient by the input",
                  "squared: loss per unit of the normalised input"),
    "aum": Column("mean over the active epochs of target logit minus largest other logit; low = suspicious", "logits"),
    "confidence": Column("mean over the active epochs of the probability of the label that the network is told"),
    "variability": Column("standard deviation of that probability over the active epochs (ddof 0)"),
    "n_presentations": Column("how often the sample was trained on", "presentations"),
    "first_epoch": Column("epochs completed after the first one that trained on the sample; -1 = none", EPOCHS),
    "last_epoch": Column("epochs completed after the last one that trained on the sample; -1 = none", EPOCHS),
    "position_mean": Column("mean place in the epoch's order of presentation, 0 = first, 1 = last"),
}  # fmt: skip
"""By pattern of the name; `online_` before it: from the training steps instead of a pass after the epoch."""

ONLINE = "online_"


def definition(name: str) -> Column:
    """What a column of training dynamics holds; its name says it where nothing else does."""
    bare = name.removeprefix(ONLINE)
    for pattern, column in DYNAMICS.items():
        if found := re.fullmatch(pattern, bare):
            said = column.definition.format(*found.groups())
            how = "" if bare == name else " (before the update, training mode, augmented inputs)"
            return Column(said + how, column.unit)
    return Column(name)


def classification_columns(axes: Mapping[str, str]) -> dict[str, Column]:
    """The columns of codes, given the column of each axis."""
    letters = ", ".join(f"{axis}: {axes.get(axis, 'not measured')}" for axis in AXES)
    return {
        "code": Column(f"H = at or above the threshold, L = below, ? = unknown, - = not measured; {letters}"),
        "code_name": Column("name of the code, where it has one"),
    }
