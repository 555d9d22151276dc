"""The ``turnlog`` command: its groups, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import sys

import click

from turnlog import __version__, logs
from turnlog.cli.config import config
from turnlog.cli.copying import copy
from turnlog.cli.importing import import_
from turnlog.cli.keys import keys
from turnlog.cli.migrate import migrate
from turnlog.cli.serve import serve
from turnlog.cli.tail import tail
from turnlog.cli.webhooks import webhooks
from turnlog.errors import SettingError
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError, StoreUncertainError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="turnlog", message="%(prog)s %(version)s")
def turnlog() -> None:
    """A durable, self-hosted server of ASAPP's Conversations API."""
    logs.configure("critical", str)  # a command's outcome is its answer; `serve` turns the log on


for command in (serve, keys, webhooks, import_, copy, tail, migrate, config):
    turnlog.add_command(command)


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
        _complain(f"the store cannot be written now, nothing was changed: {error}")
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
