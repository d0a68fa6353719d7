"""The models, by the name that a checkpoint carries."""

from models.svg import SVG

MODELS = {"svg": SVG}


def build(config):
    """The model of a checkpoint's "model" entry, without its weights."""
    if not all(isinstance(value, (bool, int, str)) for value in config.values()):
        raise TypeError("a setting of the model is neither a number nor a word")
    return MODELS[config["name"]](**{key: value for key, value in config.items() if key != "name"})
