"""`python -m bestiary` is `bestiary`."""


def _run() -> None:
    from bestiary.serve.cli.main import main

    main()


if __name__ == "__main__":
    _run()
