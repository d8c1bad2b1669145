"""The command line. Every command loads its own code when it runs, so that `--help` is quick and an agent
does not import the simulator."""
