"""A model's options, each declared once: from here it reaches `--help`, the model and the checkpoint. SVG's are below."""

from dataclasses import dataclass, field, fields

from models import dcgan, vgg

MOST = 2**31 - 1


def option(default, help, low=1, high=MOST, choices=None, bare=None, of_data=False):
    """A field of a model's Config that is a flag too: declared once, it reaches `--help`, the model and the checkpoint.

    Numbers lie in low .. high, or in `choices`, as words may; `bare` is what the flag means without a value. A bool is a
    switch. An option `of_data` is by default what the data has.
    """
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices, bare=bare, of_data=of_data))


def check_config(config):
    """Refuse, with a TypeError or ValueError, a Config whose values are not of its fields' types and ranges."""
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata
        if type(value) is not f.type:
            raise TypeError(f"its model has {f.name} {value!r}")
        if choices := about.get("choices"):
            allowed = value in choices
        else:
            allowed = f.type in (bool, str) or about.get("low", 0) <= value <= about.get("high", MOST)
        if not allowed:
            raise ValueError(f"its model has {f.name} {value!r}")


# A backbone is a module with Encoder(g_dim, width, norm, channels, size), x, c, rows -> h, their skips (fine to coarse), pooled
# maps; and Decoder(g_dim, width, norm, channels, size) with skip_terms(skips) and g, add, c -> frames (models/vgg.py).
# Prediction folds a BatchNorm into the convolution before it, and cond_conv modulates what follows a convolution, where both
# stand in one nn.Sequential.
BACKBONES = {"vgg": vgg, "dcgan": dcgan}


@dataclass
class Config:
    """What makes an SVG: the size of the condition, the prior (fixed or learned), and the options."""

    cond_dim: int
    prior: str = field(default="learned", metadata={"choices": ("fixed", "learned")})
    n_past: int = option(2, "frames given")
    backbone: str = option("vgg", "encoder and decoder: SVG's vgg_64 and vgg_128, or its smaller dcgan", choices=tuple(BACKBONES))
    image_size: int = option(64, "pixels a side of the frames (default: what the data has)", choices=(64, 128), of_data=True)
    channels: int = option(3, "channels of a frame: 3, or 1 for grey", choices=(1, 3))
    width: int = option(64, "channels at full size; 64 is the paper's, 16 suits a laptop")
    g_dim: int = option(128, "size of the encoder's and the predictor's vectors")
    z_dim: int = option(64, "size of the latents")
    rnn_size: int = option(256, "hidden size of every LSTM")
    predictor_rnn_layers: int = option(2, "LSTM layers of the frame predictor", high=64)
    posterior_rnn_layers: int = option(1, "LSTM layers of the posterior", high=64)
    prior_rnn_layers: int = option(1, "LSTM layers of a learned prior", high=64)
    last_frame_skip: bool = option(False, "skips from frame i-1 always, given or predicted")
    skip_frame: str = option(
        "last", "skips of predicted steps: from the last given frame, or from the one before it as in the classic code",
        choices=("last", "classic"),
    )  # fmt: skip
    classic_feedback: bool = option(
        False, "free-running training is fed its own x^_1 at i = 2, though x_1 is given, as the robot labs' loops do"
    )  # fmt: skip
    cond_frame: str = option(
        "source", "step i is told the condition of frame i-1, or of its target i, which shows where the arm will be (a leak)",
        choices=("source", "target"),
    )  # fmt: skip
    hierarchy: int = option(1, "levels of latents, inspired by HAF-SVG: 1x1, then 4x4, 8x8, 16x16", high=4)
    align: bool = option(False, "skips move with a flow that the frame predictor gives (HAF-SVG's aligner)")
    cond_conv: str = option(
        "none", "the condition modulates every convolution: of the decoder (--cond_conv alone), or of the encoder too",
        choices=("none", "decoder", "encoder"), bare="decoder",
    )  # fmt: skip
    norm: str = option("batch", "normalisation: BatchNorm, or GroupNorm frame by frame", choices=("batch", "group"))
