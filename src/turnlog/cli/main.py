"""The ``turnlog`` command: its groups, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from turnlog import __version__, logs
from turnlog.errors import SettingError
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError, StoreUncertainError

_COMMANDS = {
    "backup": "backup",
    "check": "backup",
    "config": "config",
    "copy": "copying",
    "import": "importing",
    "keys": "keys",
    "migrate": "migrate",
    "restore": "backup",
    "serve": "serve",
    "tail": "tail",
    "webhooks": "webhooks",
}
"""The module of each command, where it has its own name, or ``import_``."""


class _Commands(click.Group):
    """Loads a command when it is asked for: none waits for what another needs, which is most of the time it takes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"turnlog.cli.{_COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        assert isinstance(command, click.Command)  # noqa: S101 - the table says so
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="turnlog", message="%(prog)s %(version)s")
def turnlog() -> None:
    """A durable, self-hosted server of ASAPP's Conversations API."""
    logs.configure("critical", str)  # a command's outcome is its answer; `serve` turns the log on


def main() -> None:
    """Run the command line. A refusal is one line on standard error; the status is 1, of a wrong usage 2."""
    try:
        sys.exit(turnlog.main(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _complain(error.format_message())
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is left in the buffer has nowhere to go.
        sys.stderr.close()
        sys.exit(1)
    except UnicodeError:
        _complain("what was given is not UTF-8")
        sys.exit(1)
    except StoreUnavailableError as error:
        _complain(f"the store cannot be used now, nothing was changed: {error}")
        sys.exit(1)
    except StoreUncertainError as error:
        _complain(f"the store did not answer in time: {error}")
        sys.exit(1)
    except StoreFailedError as error:
        _complain(f"the store cannot be used: {error}")
        sys.exit(1)
    except (SettingError, OSError) as error:
        _complain(str(error))
        sys.exit(1)


def _complain(message: str) -> None:
    line = f"turnlog: {' '.join(message.split())}"
    click.echo(line.encode("utf-8", "backslashreplace"), err=True)
