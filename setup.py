"""The packages of the wheel: the code, and `conf/` as `balance/conf`. Everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["balance", "balance.*"]), "balance.conf"],
    package_dir={"balance.conf": "conf"},
)
