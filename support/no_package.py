"""What pip finds when it is asked to install these scripts: they run where they are."""

raise SystemExit("This is not a package. In this folder: pip install -r requirements.txt, and then "
                 "python iterate.py")
