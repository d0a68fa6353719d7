"""A step of the optimiser: the objective, clipping, updates, the moving average of the weights."""

import copy

import torch

from training import distributed
from training.checkpoint import load_weights
from utils import UserError, first_line, seed_everything


class Objective(torch.nn.Module):
    """A model's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model, beta):
        super().__init__()
        self.model, self.beta = model, beta

    def forward(self, frames, cond, teacher_forcing, kl_weight):
        """The scalar to minimise, mse + kl_weight * beta * kld; model.loss's terms and kl_weight * beta, without gradient."""
        losses = self.model.loss(frames, cond, teacher_forcing)
        weight = kl_weight * (self.calibrated(losses["mse"], frames) if self.beta == "auto" else self.beta)
        loss = losses["mse"] + (weight * losses["kld"] if kl_weight and self.beta else 0)  # 0 x inf would be NaN
        found = {name: value.detach() for name, value in losses.items()}
        return loss, found | {"beta": weight if torch.is_tensor(weight) else torch.full_like(found["mse"], weight)}

    @staticmethod
    def calibrated(mse, frames):
        """--beta auto: 2 * mse / (C * H * W), mse per step and pixel (sigma-VAE, Rybkin, Daniilidis & Levine 2021).

        The loss then has the gradient, up to a factor, of a Gaussian likelihood whose one sigma is the best for these frames.
        """
        per_step = distributed.all_reduce_mean(mse.detach().float().clone()) / (frames.shape[1] - 1)
        return 2 * per_step / frames[0, 0].numel()


def clip_and_step(optimizer, max_norm, failure, step, loss):
    """Scale the gradients down to the norm max_norm (0: any) and step, unless they are not finite or were not before.

    failure is (step, loss) on the device, set by the first such step; the fused optimisers heed it there, so that the host
    need not wait.
    """
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    first = ~norm.isfinite() & (failure[0] == 0)
    failure.copy_(torch.where(first, torch.stack([torch.full_like(failure[0], step), loss.to(failure)]), failure))
    scale = (norm / (max_norm or float("inf"))).clamp_min(1)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = scale, (failure[0] > 0).float()
        optimizer.step()
    elif not failure[0]:
        torch._foreach_div_(grads, scale)
        optimizer.step()


def update_ema(average, model, decay, step):
    """Move an exponential moving average of weights and BatchNorm statistics on by a step; young, it forgets faster."""
    values = lambda module: [value for value in module.state_dict().values() if value.is_floating_point()]
    torch._foreach_lerp_(values(average), values(model), 1 - min(decay, (1 + step) / (10 + step)))


def build_models(make_model, args, device):
    """The model on the device, compiled where asked, and what is validated and saved for prediction: itself, or its average."""
    seed_everything(args.seed)
    try:
        model = make_model()
    except (RuntimeError, MemoryError, ValueError) as error:
        raise UserError(
            f"the model cannot be made ({first_line(error)[:80]}); change its options (--help: model)"
        ) from None
    if args.init_from and not args.resume:
        load_weights(model, args.init_from, args.init_drawn)
    model.to(device, memory_format=torch.channels_last)
    eval_model = copy.deepcopy(model) if args.ema else model
    if args.compile:
        for network in model.children():
            network.compile(dynamic=False, mode=args.compile)
    return model, eval_model


def make_optimizer(model, args, device):
    """The optimiser of --optimizer, fused where torch has it."""
    fused = device.type in ("cpu", "cuda")
    if args.optimizer in ("adam", "adamw"):
        rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
        return rule(model.parameters(), args.lr, betas=(args.beta1, 0.999), fused=fused)
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.beta1, fused=fused)
        if args.beta1:
            # torch's fused SGD fails where some weights have a momentum and others, without a gradient so far, have none.
            for weight in model.parameters():
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer
    return torch.optim.RMSprop(model.parameters(), args.lr, momentum=args.beta1)
