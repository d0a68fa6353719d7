"""Train SVG-LP: action-conditioned stochastic video generation with a learned prior z ~ p(z | frames so far)."""

import options
from dataset import open_splits
from models import SVG
from training import trainer
from utils import run_command


def train(prior, description):
    """Train an SVG with a fixed or a learned prior by the command line's flags; returns the exit status."""
    args = options.parse_training(options.training_parser(description))
    train_set, val_set = open_splits(args)

    def make_model():
        model = SVG(train_set.cond_dim, prior=prior, **options.model_options(SVG, args))
        if not args.resume:  # a checkpoint has them
            model.set_cond_stats(*train_set.cond_stats())
        return model

    return trainer.fit(make_model, train_set, val_set, args)


def main():
    return train("learned", __doc__)


if __name__ == "__main__":
    run_command(main)
