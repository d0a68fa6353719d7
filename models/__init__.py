"""The models, by the name that a checkpoint carries.

Another one is an entry here, with a dataclass `Config` of its options (models/config.py), `config` to rebuild it from, `n_past`,
`loss` (a dict with "mse" and "kld"), `predict`, `reconstruct` and `predicting`, as SVG has them; and a command like train_pose.py.
"""

from models.config import check_config
from models.pose_cvae import PoseCVAE
from models.svg import SVG

MODELS = {"svg": SVG, "pose_cvae": PoseCVAE}


def build(config):
    """The model of a checkpoint's "model" entry, without its weights. Raises a KeyError, TypeError or ValueError where it is none."""
    model = MODELS[config["name"]]
    options = {key: value for key, value in config.items() if key != "name"}
    check_config(model.Config(**options))
    return model(**options)
