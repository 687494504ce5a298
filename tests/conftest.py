"""What every test needs: `tools/` on the path, as when a command is run, and quiet imports."""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
os.environ.setdefault('GLOG_minloglevel', '2')
warnings.filterwarnings('ignore', message='No ccache found')
