"""Train SVG-FP: action-conditioned stochastic video generation with a fixed prior z ~ N(0, I)."""

from train_learned_prior import train
from utils import run_command


def main():
    return train("fixed", __doc__)


if __name__ == "__main__":
    run_command(main)
