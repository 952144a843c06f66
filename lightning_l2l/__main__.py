from lightning_l2l.cli import main

main()
