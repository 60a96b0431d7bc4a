"""The table of methods, in the order in which they are explained; one file each."""

from poe.sampling.methods.annealed import ANNEALED
from poe.sampling.methods.chains import CHAINS
from poe.sampling.methods.exact import ENUMERATE, EXACT
from poe.sampling.methods.importance import IMPORTANCE
from poe.sampling.methods.parts import PARTS
from poe.sampling.methods.sequential import SEQUENTIAL
from poe.sampling.methods.tempered import TEMPERED

LISTED = EXACT, ENUMERATE, PARTS, SEQUENTIAL, IMPORTANCE, ANNEALED, CHAINS, TEMPERED
METHODS = {method.name: method for method in LISTED}
