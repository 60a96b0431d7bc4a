"""Energies and how they combine: the nodes of the algebra, one file each, what is known of them
(`facts`, `simplification`), their text, their supports and what they can do.

Nothing here draws or reads files. Of this library it imports `poe.registry` alone. A node is its
fields and its evaluation; `node_facts` and `node_text` register what is known of it and how it is
written, so that other folders ask a function (`facts.proper`, `text.written`, or a
`functools.singledispatch` of their own), not a class. The builders `product`, `mixture`, `contrast`
and `pullback` are in the modules of their names, and in `poe`.
"""

from poe.algebra import node_facts as node_facts
from poe.algebra import node_text as node_text
from poe.algebra.closed_forms import closed_form
from poe.algebra.combination import Combination, combined
from poe.algebra.combining import combine, conjunction, part_on, places
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Density, Energy, Estimate, checked_level
from poe.algebra.errors import ImproperError, ImproperWarning, LawError
from poe.algebra.evaluation import together, together_with_gradients
from poe.algebra.maps import Fill, Preimage, Select, fill
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback, is_on, on
from poe.algebra.shifted import Shifted, shift
from poe.algebra.simplification import simplify
from poe.algebra.text import bracketed, caveats, leaves, names

__all__ = [
    "Combination",
    "Contrast",
    "Density",
    "Energy",
    "Estimate",
    "Fill",
    "ImproperError",
    "ImproperWarning",
    "LawError",
    "Mixture",
    "Preimage",
    "Product",
    "Pullback",
    "Select",
    "Shifted",
    "bracketed",
    "caveats",
    "checked_level",
    "closed_form",
    "combine",
    "combined",
    "conjunction",
    "fill",
    "is_on",
    "leaves",
    "names",
    "on",
    "part_on",
    "places",
    "shift",
    "simplify",
    "together",
    "together_with_gradients",
]
