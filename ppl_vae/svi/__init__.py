"""How is a training step made fast, and how is that proved right?

Where to look for an answer:

* ``svi``: which loss does ``pyro.infer.SVI`` differentiate, and which parameters does it move?
* ``step``: when does a step run eagerly, when is it recorded, and when does it run from a proved graph?
* ``capture`` and ``proof``: how is a step recorded, and how is it proved that the graph repeats it?
* ``surroundings``: what does a step read besides its arguments, and has that changed? ``user_code``, ``python_values``
  and ``handlers`` are parts of the answer.
* ``differentiation``: how are a loss and its gradients computed without reading a value?
* ``shortening``, ``backends`` and ``precision``: how is the graph shortened, what runs it, and with how many digits?
* ``movers`` and ``adam``: how are the parameters moved by their gradients?
"""

from .adam import Adam
from .backends import BACKENDS
from .capture import NotStatic
from .step import Stale, Step
from .svi import SVI

__all__ = ["BACKENDS", "SVI", "Adam", "NotStatic", "Stale", "Step"]
