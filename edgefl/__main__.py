from edgefl.cli import main

main()
