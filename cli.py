"""The command line: types of an option's value, a parser whose errors are one line, answers to flags of other code bases."""

import argparse

# Types: functions of a text that raise ValueError or ArgumentTypeError.


def number(kind, low, high=float("inf")):
    """An argparse type: a number of `kind` in [low, high]."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low} .. {high}")
        return value

    parse.__name__ = kind.__name__
    return parse


count, natural = number(int, 1, 2**31 - 1), number(int, 0, 2**31 - 1)
share, positive = number(float, 0, 1), number(float, 0, 3.4e38)  # float32's largest


def one_of(*names, **aliases):
    """An argparse type: one of the names, in whatever case, or an alias of one."""
    known = {name.lower(): name for name in names} | aliases

    def parse(text):
        try:
            return known[text.lower()]
        except KeyError:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}") from None

    return parse


def beta(text):
    """A number, or auto."""
    return text if text == "auto" else positive(text)


def save_interval(text):
    """[steps, minutes] between checkpoints, 0 for never: "200" are steps, "10m" minutes."""
    try:
        return [0, positive(text[:-1])] if text.endswith("m") else [natural(text), 0]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps (200) nor of minutes (10m)") from None


def cuts(text):
    """Frame numbers as an increasing list: "630,1260"."""
    try:
        found = [count(n) for n in text.split(",")]
        if found != sorted(set(found)):
            raise ValueError
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of increasing frame numbers (630,1260)") from None
    return found


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, except where there is nothing to say."""

    def _get_help_string(self, action):
        default = action.default
        if default in (None, argparse.SUPPRESS, []) or isinstance(default, bool):
            return action.help
        if isinstance(default, list):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and in which a misspelt flag is one rather than an abbreviation."""

    def __init__(self, description=None, formatter_class=Formatter, **kwargs):
        super().__init__(description=description, formatter_class=formatter_class, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")

    def group(self, title):
        """A function that adds a flag to a new group: add("--name --alias", default, "help", type, ...)."""
        group = self.add_argument_group(title)
        return lambda names, default=None, help=None, type=None, **more: group.add_argument(
            *names.split(), default=default, help=help, **({"type": type} if type else {}), **more
        )


class Answered(argparse.Action):
    """A flag of another code base that has no place here: one line says what does its work."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string}: {self.metavar}")


def answer(parser, answers):
    """Answer flags {"--name --other": "what does their work"}."""
    for names, text in answers.items():
        parser.add_argument(*names.split(), action=Answered, nargs="*", metavar=text, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
