"""Matrix factorisation."""

from torch import Tensor, nn

from lightning_l2l.errors import require_positive


class MatrixFactors(nn.Module):
    """Predicts entry (i, j) of a matrix as u_i · v_j + a_i + b_j: places [B, 2] in, entries [B] out.

    As in Koren, Bell and Volinsky, Matrix factorization techniques for recommender systems, 2009, equation 4.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        rank: numbers in each u_i and v_j. They start at N(0, 1 / rank), so that products start at about ±rank^-1/2.
    """

    def __init__(self, rows: int, columns: int, rank: int = 16) -> None:
        super().__init__()
        for name, size in {"rows": rows, "columns": columns, "rank": rank}.items():
            require_positive(f"data.network.{name}", size)
        self.row_factors = nn.Embedding(rows, rank)
        self.column_factors = nn.Embedding(columns, rank)
        self.row_offsets = nn.Embedding(rows, 1)
        self.column_offsets = nn.Embedding(columns, 1)
        self.rank = rank
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts with small factors and without offsets."""
        for factors in (self.row_factors, self.column_factors):
            nn.init.normal_(factors.weight, std=self.rank**-0.5)
        for offsets in (self.row_offsets, self.column_offsets):
            nn.init.zeros_(offsets.weight)

    def forward(self, places: Tensor) -> Tensor:
        """Returns the predicted entries."""
        row, column = places.unbind(-1)
        product = (self.row_factors(row) * self.column_factors(column)).sum(-1)
        return product + self.row_offsets(row).squeeze(-1) + self.column_offsets(column).squeeze(-1)
