"""`python -m p2pqg`: the program `p2pqg`, as torchrun starts it."""

from p2pqg.cli.main import main

main()
