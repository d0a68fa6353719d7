"""The models, by the name that a checkpoint carries."""

from models.pose_cvae import PoseCVAE
from models.svg import SVG

MODELS = {"svg": SVG, "pose_cvae": PoseCVAE}


def build(config):
    """The model of a checkpoint's "model" entry, without its weights."""
    if not all(isinstance(value, (bool, int, float, str)) for value in config.values()):
        raise TypeError("a setting of the model is neither a number nor a word")
    return MODELS[config["name"]](**{key: value for key, value in config.items() if key != "name"})
