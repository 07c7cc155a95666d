"""Every test run checks the shapes and types that signatures promise."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook(["projections", "influence", "selection"], "conftest.checker")
