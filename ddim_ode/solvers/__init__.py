"""The numbers layer: charts, quadrature, tableaux, methods and the plans they compile to."""
