"""The command line. `main` names the commands; each is a module that is imported when it is called."""
