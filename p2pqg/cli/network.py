"""`p2pqg network`: the operator's commands, on the folder that holds the network's authority."""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2pqg.addresses import host_and_port
from p2pqg.cli.options import json_option
from p2pqg.cli.templates import member_toml, network_toml
from p2pqg.errors import ConfigError
from p2pqg.security.authority import AUTHORITY_DAYS, CERTIFICATE_DAYS, NETWORK, Authority
from p2pqg.security.certificates import dns_names, fingerprint
from p2pqg.storage import write_atomically

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("."),
    help="The network's folder (the current one).",
)
days_option = click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=CERTIFICATE_DAYS, show_default=True,
    help="How long the certificate is valid.",
)  # fmt: skip


@click.group()
def network() -> None:
    """The operator's commands: make a network, sign, renew and revoke certificates."""


@network.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make it (a folder NAME).")
@click.option("--task", default="digits", show_default=True)
@click.option("--algorithm", default="qg-dsgdm-n", show_default=True)
@click.option(
    "--topology",
    default="ring",
    show_default=True,
    help="ring, torus, 4-regular, exponential, complete, ...; an unknown one is answered by the list.",
)
@click.option(
    "--membership",
    type=click.Choice(["fixed", "alive"]),
    default="fixed",
    show_default=True,
    help="Whether the graph is over all agents, or over whoever is alive.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--lr", type=float, default=0.1, show_default=True)
@click.option("--days", type=click.FloatRange(min=1), default=AUTHORITY_DAYS, show_default=True,
              help="How long the authority is valid.")  # fmt: skip
def create(
    name: str,
    folder: Path | None,
    task: str,
    algorithm: str,
    topology: str,
    membership: str,
    rounds: int,
    lr: float,
    days: float,
) -> None:
    """Make a network: its certificate authority and its settings file."""
    import tomllib

    from p2pqg.config import RunSettings, validate
    from p2pqg.topology.named import named
    from p2pqg.topology.rules import check_rule

    folder = folder or Path(name)
    try:
        named(topology) if membership == "fixed" else check_rule(topology)
    except ConfigError as error:
        raise ConfigError(error.message, where="--topology") from None
    text = network_toml(
        name,
        topology=topology,
        membership=membership,
        rounds=rounds,
        task=task,
        algorithm=algorithm,
        lr=lr,
    )
    table = tomllib.loads(text)  # without agents yet, so the graph itself cannot be built
    common = {key: value for key, value in table.items() if key in RunSettings.model_fields}
    validate(RunSettings, common, where=str(folder / NETWORK))
    if (folder / NETWORK).exists():
        raise ConfigError("expected no network there yet", where=str(folder / NETWORK))
    authority = Authority.create(folder, name, days=days)
    write_atomically(folder / NETWORK, text.encode())
    click.echo(f"made the network {name} in {folder}")
    click.echo(f"authority   {fingerprint(authority.certificate)}")
    click.echo(
        f"Look through {folder / NETWORK}. Keep {folder / 'authority.key'} secret, and a copy of it safe."
    )


@network.command()
@click.argument("request", type=click.Path(path_type=Path))
@folder_option
@click.option("--address", metavar="HOST:PORT", help="Where others dial the agent; goes into network.toml.")
@days_option
@click.option("--replace", is_flag=True, help="The agent has a new key: revoke the certificates of the old.")
@click.option("--yes", is_flag=True, help="The fingerprint was compared; do not ask.")
def sign(request: Path, folder: Path, address: str | None, days: float, replace: bool, yes: bool) -> None:
    """Sign the certificate request of one agent, after its fingerprint was compared."""
    authority = Authority.open(folder)
    asked = authority.read_request(request)
    (name,) = dns_names(asked)
    entry = _new_member(folder / NETWORK, name, address)
    click.echo(f"agent   {name}\nkey     {fingerprint(asked)}")
    if not yes:
        question = f"Ask {name}'s administrator to read out the fingerprint. Is it the same?"
        click.confirm(question, abort=True)
    certificate = authority.sign(asked, days=days, replace=replace)
    if entry:
        text = (folder / NETWORK).read_text(encoding="utf-8")
        write_atomically(folder / NETWORK, (text + entry).encode())
    click.echo(f"signed, valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"When all agents are signed: p2pqg network package --folder {folder}")


@network.command()
@click.argument("names", nargs=-1)
@folder_option
def package(names: tuple[str, ...], folder: Path) -> None:
    """Write what a site needs into one file: certificates and settings, never a key.

    NAMES: the agents; all of them if none is given.
    """
    from p2pqg import config

    authority = Authority.open(folder)
    settings = config.load(config.NetworkFile, folder / NETWORK)
    valid = [agent["agent"] for agent in authority.agents() if agent["state"] == "valid"]
    for name in names or valid:
        path = authority.package(name)
        missing = "" if name in settings.names else f" ({NETWORK} does not list it: sign --address)"
        click.echo(f"{path}{missing}")
    click.echo(f"authority   {fingerprint(authority.certificate)}")
    click.echo("Send each site its file, and read the authority's fingerprint to its administrator.")


@network.command()
@click.argument("name")
@folder_option
@days_option
def renew(name: str, folder: Path, days: float) -> None:
    """Sign a new certificate for the key an agent has, with new dates."""
    certificate = Authority.open(folder).renew(name, days=days)
    click.echo(f"renewed {name}, valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"Next: p2pqg network package {name} --folder {folder}. The agent needs no restart.")


@network.command()
@click.argument("name")
@folder_option
def revoke(name: str, folder: Path) -> None:
    """Take back all certificates of an agent."""
    number = Authority.open(folder).revoke(name)
    click.echo(f"revoked {name}; this is revocation list number {number}")
    click.echo(f"Copy {folder / 'revoked.pem'} into the home of every agent. It is signed, any way will do;")
    click.echo("agents read it by themselves, and cut the connections that stand within seconds.")


@network.command()
@folder_option
@json_option
def show(folder: Path, as_json: bool) -> None:
    """The authority and the agents that have certificates."""
    authority = Authority.open(folder)
    record = {"authority": fingerprint(authority.certificate), "agents": list(authority.agents())}
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(f"authority   {record['authority']}")
    for agent in authority.agents():
        click.echo(f"{agent['agent']:<24} {agent['state']}, until {agent['until']}\n    {agent['key']}")


def _new_member(path: Path, name: str, address: str | None) -> str:
    """The text to add to the network's file so that it lists the agent; empty if it does already."""
    from p2pqg.config import Member, read_table, validate

    listed = {member["name"]: member["address"] for member in read_table(path).get("agents", ())}
    if address is None:
        return ""
    if not host_and_port(address, where="--address")[1]:
        raise ConfigError(f"expected a port that others can dial, found {address!r}", where="--address")
    validate(Member, {"name": name, "address": address}, where="--address")
    if listed.get(name, address) != address:
        raise ConfigError(
            f"expected {listed[name]}, as listed, found {address}; change it in the file first",
            where=str(path), key=f"agents.{name}.address",
        )  # fmt: skip
    return "" if name in listed else member_toml(name, address)
