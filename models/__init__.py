"""The models, by the name that a checkpoint carries."""

from models.svg import SVG

MODELS = {"svg": SVG}


def build(config):
    """The model of a checkpoint's "model" entry, without its weights."""
    return MODELS[config["name"]](**{key: value for key, value in config.items() if key != "name"})
