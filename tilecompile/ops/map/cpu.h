// map: y[i] = expression of the inputs' elements i. The loops are written out for each node: see map/__init__.py.
#pragma once
