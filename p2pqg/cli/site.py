"""`p2pqg init` and `p2pqg install`: an agent's home, before and after the operator signed its request."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click

from p2pqg.cli.templates import agent_toml
from p2pqg.errors import ConfigError
from p2pqg.security.certificates import days_left
from p2pqg.security.site import REQUEST, Package, make_identity
from p2pqg.storage import write_atomically

SETTINGS = "agent.toml"


@click.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="The agent's home (a folder NAME).")
@click.option("--listen", metavar="ADDRESS:PORT", default="0.0.0.0:7000", show_default=True,
              help="Where the agent accepts connections.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="Where the agent's data are.")
@click.option("--new-key", is_flag=True, help="Ask for a certificate for a second key, to replace the first.")
def init(name: str, folder: Path | None, listen: str, data: Path | None, new_key: bool) -> None:
    """Make the home of the agent NAME: a key, a certificate request and settings to look through."""
    folder = folder or Path(name)
    if new_key:
        _expect_name(folder, name)
    elif (folder / SETTINGS).exists():
        raise ConfigError("expected no agent there yet", where=str(folder / SETTINGS))
    key = make_identity(folder, name, new_key=new_key)
    if not new_key:
        write_atomically(folder / SETTINGS, agent_toml(name, listen, data).encode())
    click.echo(f"made the home of {name} in {folder}")
    click.echo(f"key     {key}")
    click.echo(f"Send {folder / REQUEST} to the network's operator and read the fingerprint to them.")
    click.echo(f"Then: p2pqg install PACKAGE --home {folder}")


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--home", "folder", type=click.Path(path_type=Path), default=Path("."),
              help="The agent's home (the current folder).")  # fmt: skip
@click.option("--authority", metavar="FINGERPRINT", help="What the operator read out; then nothing is asked.")
def install(package: Path, folder: Path, authority: str | None) -> None:
    """Install what the network's operator sent: certificates, revocation list, network settings.

    A renewed certificate is used from the next connection on, without a restart.
    """
    opened = Package.open(folder, package, _expect_name(folder))
    click.echo(f"authority   {opened.authority}" + (" (as before)" if opened.known else ""))
    if authority is not None and _digits(authority) != _digits(opened.authority):
        raise ConfigError(f"expected the authority {authority}", where=str(package))
    if authority is None and not opened.known:
        click.confirm("Ask the operator to read out the fingerprint. Is it the same?", abort=True)
    opened.install()
    click.echo(f"installed; the certificate is valid for {days_left(opened.certificate):.0f} days")
    click.echo(f"Next: p2pqg preflight --config {folder / SETTINGS}")


def _expect_name(folder: Path, name: str | None = None) -> str:
    """The agent's name, from its settings. Raises `ConfigError` if it is another than `name`."""
    path = folder / SETTINGS
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))["agent"]["name"]
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, LookupError, TypeError):
        raise ConfigError("expected a name", where=str(path), key="agent.name") from None
    if name is not None and found != name:
        raise ConfigError(f"expected {name}, found {found}", where=str(path), key="agent.name")
    return str(found)


def _digits(key: str) -> str:
    return key.replace(" ", "").lower()
