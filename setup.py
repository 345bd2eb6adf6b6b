"""Package lists for setuptools; everything else stands in pyproject.toml.

The folder ``model/`` is installed as ``livetalk_model``. Sub-packages are found, so a new folder
with an ``__init__.py`` (an op, for example) needs no entry here.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["livetalk_kernels", "livetalk_kernels.*"]),
        "livetalk_model",
        *(f"livetalk_model.{name}" for name in find_packages("model")),
    ],
    package_dir={"livetalk_model": "model"},
    package_data={"": ["py.typed"]},
)
