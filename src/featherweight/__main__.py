"""`python -m featherweight` is `fw`."""

from featherweight.cli.main import main

main()
