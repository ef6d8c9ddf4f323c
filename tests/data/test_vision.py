"""torchvision comes in through one door."""

import subprocess
import sys
from pathlib import Path

import torch

import plastiscope
from plastiscope.data.vision import vision


def test_models_and_transforms_work_beside_any_torch():
    net = vision().models.resnet18(num_classes=3)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert vision().transforms.Resize(4)(torch.zeros(3, 8, 8)).shape == (3, 4, 4)
    assert vision() is vision()


def test_only_one_module_imports_torchvision():
    root = Path(plastiscope.__file__).parent
    importers = [path.name for path in root.rglob("*.py") if "import torchvision" in path.read_text()
                 or "from torchvision" in path.read_text()]  # fmt: skip
    assert importers == ["vision.py"]


def test_a_data_set_that_needs_no_torchvision_does_not_load_it():
    code = "import sys, plastiscope.data.digits; sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
