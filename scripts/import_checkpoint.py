"""Make a checkpoint of this project from one of others, without running any of their code.

    python -m scripts.import_checkpoint model.pth runs/theirs/svg.pt [--data_root ROOT] [--cond action]

The source is what edenton/svg and the robot labs save: the pickled modules encoder, decoder, frame_predictor, posterior and
(of SVG-LP) prior, or a state_dict in a module's place, with their `opt` or `args`. Or it is the pose lab's .ckpt, if its networks are
those of models/pose_cvae.py. training/unpickle.py reads them.
"""

import argparse
from pathlib import Path

import torch
import torch.nn as nn

import cli
import options
from models import build
from training.checkpoint import check_target, explained, save_checkpoint
from training.unpickle import Refused, read
from utils import UserError, run_command

NETWORKS = "encoder decoder frame_predictor posterior prior".split()
LAST = {"c5.0.weight": 64, "c6.0.weight": 128}  # a weight of the encoder's last layer: the size of its frames
CONDITIONS = {0: "none", 3: "position", 4: "action", 7: "action+position"}
# Where a pose model's channels are: a weight, and which of its dimensions.
POSE_SIZES = {
    "F_dim": ("frame_transformation.4.weight", 0), "L_dim": ("label_transformation.4.weight", 0),
    "N_dim": ("Decoder_Fusion.noise.weight", 1), "D_out_dim": ("Generator.main.0.weight", 1),
}  # fmt: skip
# What of a layer is no weight and changes its result.
SETTINGS = "negative_slope eps kernel_size stride padding output_padding padding_mode dilation groups".split()
MOST_LAYERS = 1000  # of a network; the largest here has 80


def unfold(network):
    """A pickled module's layers by their names, and its tensors as state_dict() would name them; of a state_dict the tensors."""
    if isinstance(network, dict):
        return {}, network
    layers, views, rest = {}, {}, [("", network)]
    while rest and len(layers) < MOST_LAYERS:  # else a few modules, each twice in the next, would unfold to billions
        name, layer = rest.pop()
        layers[name] = layer
        tensors = {**layer.state["_parameters"], **layer.state["_buffers"]}
        views |= {f"{name}.{key}".lstrip("."): view for key, view in tensors.items() if view is not None}
        rest += [(f"{name}.{key}".lstrip("."), child) for key, child in layer.state["_modules"].items() if child is not None]
    return layers, views


def same(ours, theirs):
    """Whether a pickled layer computes what ours does. Of torch's, class and settings are compared; of others, there are layers within."""
    kind = type(theirs).__name__
    if ours is None or theirs is None or not kind.startswith("torch.nn.modules."):
        return ours is not None and theirs is not None
    known = kind.rpartition(".")[2] in [cls.__name__ for cls in type(ours).__mro__]
    return known and all(getattr(ours, key) == theirs.state[key] for key in SETTINGS if hasattr(ours, key) and key in theirs.state)


def take(path, name, ours, theirs, storages):
    """The weights of `theirs` for our network of this name, which must be the same in layers, names and shapes."""
    (layers, views), own, modules = unfold(theirs), ours.state_dict(), dict(ours.named_modules())
    if type(layers.get("up")).__name__ == "torch.nn.modules.upsampling.UpsamplingNearest2d":
        del layers["up"]  # part of models/vgg.py's convolutions
    # torch before 0.4.1 did not count batches.
    counts = {key: torch.zeros((), dtype=torch.int64) for key in own if key.endswith("num_batches_tracked") and key not in views}
    wanted = {key: tuple(x.shape) for key, x in own.items() if key not in counts}
    found = {key: tuple(view.size) for key, view in views.items()}
    odd = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    odd += [key for key in modules | layers if layers and not same(modules.get(key), layers.get(key))]
    if odd:
        raise UserError(f"{path}: its {spell(name)} is not this project's at {spell(odd[0])}; such a network cannot be imported")
    weights = counts | {key: view.read(storages, own[key].dtype) for key, view in views.items()}
    if not all(x.isfinite().all() for x in weights.values()):
        raise UserError(f"{path}: its {name} has weights or BatchNorm statistics that are not finite; use another copy")
    return {f"{name}.{key}": x for key, x in weights.items()}


def without_weights(path, config):
    """The model of a config, to compare with; it takes no memory, whatever a file says of its size."""
    with explained(path, "its model cannot be rebuilt"), torch.device("meta"):
        return build(config)


def svg(path, content, storages, args):
    """model, state_dict and cond of a file with SVG's networks. What they are is read off their weights' shapes."""
    networks = {name: content[name] for name in NETWORKS if content.get(name) is not None}
    missing = [name for name in NETWORKS[:4] if name not in networks]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; give a file with {', '.join(NETWORKS[:4])}")
    sizes = {name: {key: view.size for key, view in unfold(network)[1].items()} for name, network in networks.items()}
    encoder, predictor = sizes["encoder"], sizes["frame_predictor"]
    backbone, first = ("vgg", "c1.0.main.0.weight") if "c1.0.main.0.weight" in encoder else ("dcgan", "c1.main.0.weight")
    last = next((key for key in LAST if key in encoder), None)
    if first not in encoder or last is None:
        raise UserError(f"{path}: its encoder is none of vgg_64, vgg_128, dcgan_64, dcgan_128; such a network cannot be imported")
    g_dim, z_dim = encoder[last][0], sizes["posterior"]["mu_net.weight"][0]
    rnn_size, n_inputs = predictor["embed.weight"]
    cond_dim = n_inputs - g_dim - z_dim
    layers = {f"{name.removeprefix('frame_')}_rnn_layers": sum("weight_ih" in key for key in sizes[name]) for name in NETWORKS[2:] if name in sizes}
    model = without_weights(path, dict(
        name="svg", cond_dim=cond_dim, prior="learned" if "prior" in networks else "fixed", n_past=setting(path, content, args, "n_past", int),
        backbone=backbone, image_size=LAST[last], width=encoder[first][0], channels=encoder[first][1], g_dim=g_dim, z_dim=z_dim, rnn_size=rnn_size, **layers,
        last_frame_skip=setting(path, content, args, "last_frame_skip", bool), skip_frame="classic",
        cond_frame=args.cond_frame,
    ))  # fmt: skip
    cond = args.cond or CONDITIONS.get(cond_dim)
    if cond is None:
        raise UserError(f"{path}: its condition has {cond_dim} numbers a frame; say with --cond what they are")
    weights = {"cond_mean": torch.zeros(cond_dim), "cond_std": torch.ones(cond_dim)}
    if "output.1.weight" not in predictor:  # edenton/svg has no BatchNorm there; this one does nothing in eval mode
        del model.frame_predictor.output[1]
        norm = nn.BatchNorm1d(g_dim)
        norm.running_var -= norm.eps  # (x - 0) / sqrt(1 - eps + eps)
        weights |= {f"frame_predictor.output.1.{key}": x for key, x in norm.state_dict().items()}
    for name, network in networks.items():
        weights |= take(path, name, getattr(model, name), network, storages)
    if args.input_order == "h,z,cond":
        weights["frame_predictor.embed.weight"] = weights["frame_predictor.embed.weight"].roll(cond_dim, 1)
    return model.config, weights, cond


def pose_cvae(path, content, storages, args):
    """model, state_dict and cond of the pose lab's .ckpt, if all its networks are models/pose_cvae.py's."""
    theirs = content["state_dict"]
    sizes = {field: theirs[key].size[axis] for field, (key, axis) in POSE_SIZES.items() if key in theirs}
    model = without_weights(path, {"name": "pose_cvae", **sizes})
    networks, weights = dict(model.named_children()), {}
    for name in networks | {key.partition(".")[0]: None for key in theirs}:
        part = {key.removeprefix(f"{name}."): view for key, view in theirs.items() if key.partition(".")[0] == name}
        weights |= take(path, name, networks.get(name, nn.Module()), part, storages)
    return model.config, weights, "pose"


def setting(path, content, args, name, kind):
    """What a flag, or the `opt` or `args` beside the networks, says of the training."""
    theirs = content.get("opt", content.get("args"))
    theirs = getattr(theirs, "state", theirs)
    value = getattr(args, name)
    if value is None:
        value = theirs.get(name) if isinstance(theirs, dict) else None
    if type(value) is not kind:
        raise UserError(f"{path}: does not say what {name} is; give --{name}")
    return value


def spell(name):
    """A name of a file for a message, in one short line."""
    return ascii(name)[1:-1][:80]


def main():
    parser = cli.Parser(__doc__.splitlines()[0])
    parser.add_argument("source", help="model.pth of edenton/svg or of a lab, or the pose lab's .ckpt")
    parser.add_argument("target", help="the file to write")
    parser.add_argument("--data_root", "--DR", help="the data set that generate.py takes by default (default: one of data/)")
    parser.add_argument("--cond", choices=options.CONDITIONS, help="what the condition is (default: by how many numbers it has)")
    parser.add_argument("--input_order", choices=("cond,h,z", "h,z,cond"), default="cond,h,z", help="what the frame predictor reads")
    parser.add_argument("--cond_frame", choices=("source", "target"), default="source", help="the condition of step i: of frame i-1, or i")
    parser.add_argument("--n_past", type=cli.count, help="frames given (default: as the file says)")
    parser.add_argument("--n_future", type=cli.count, help="frames to predict (default: as the file says)")
    parser.add_argument("--last_frame_skip", action=argparse.BooleanOptionalAction, help="skips from the newest frame (default: as the file says)")
    args = parser.parse_args()
    path = Path(args.source)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_target(args.target, path)
    try:
        content, storages = read(path)
        convert = pose_cvae if "encoder" not in content and "state_dict" in content else svg
        config, weights, cond = convert(path, content, storages, args)
        n_future = setting(path, content, args, "n_future", int)
    except (UserError, MemoryError):
        raise
    except Refused as name:
        what = f"holds {spell(str(name))}, which is neither a tensor, a container nor a module, and could run code"
        raise UserError(f"{path}: {what}; nothing of it was run, ask its author for each module's state_dict()") from None
    except Exception:  # a damaged file makes the reading raise nearly anything
        raise UserError(f"{path}: truncated, damaged or not a checkpoint of SVG or of the pose lab; use another copy") from None
    default = "data/dancer" if cond == "pose" else "data/mnist" if config["channels"] == 1 else "data/pushing_sample"
    trained = {"data_root": args.data_root or default, "cond": cond, "n_future": n_future}
    save_checkpoint(args.target, {"model": config, "args": trained, "state_dict": weights})
    print(f"wrote {args.target}: {', '.join(f'{key} {value}' for key, value in (config | trained).items())}")


if __name__ == "__main__":
    run_command(main)
