// Newton–Schulz on a matrix's Gram matrix, in float32. All products but the last are symmetric, so that only the upper
// half of each is computed; PyTorch has no such product.
#include <algorithm>
#include <cmath>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr long TILE = 4, WIDTH = 2 * LANES;  // rows and columns of sums that fit in the vector registers
constexpr long PANEL = 128;                  // columns of X at a time, so that a product's factors stay in the cache
constexpr float A = 3.4445f, B = -4.7750f, C = 2.0315f, VANISHED = 1e-6f;  // see orthogonal.py
constexpr int ITERATIONS = 5;

// c = scale aᵀb + more d, [TILE, WIDTH], where a is [depth, TILE] and b is [depth, WIDTH].
inline void tile(long depth, const float* a, const float* b, float* c, long stride, float scale, const float* d, float more) {
    vec sum[TILE][2] = {};
    for (long k = 0; k < depth; ++k, a += stride, b += stride) {
        const vec left = *(const unaligned*)b, right = *(const unaligned*)(b + LANES);
        for (long i = 0; i < TILE; ++i) {
            sum[i][0] += a[i] * left;
            sum[i][1] += a[i] * right;
        }
    }
    for (long i = 0; i < TILE; ++i)
        for (long half = 0; half < 2; ++half) {
            const long at = i * stride + half * LANES;
            *(unaligned*)(c + at) = scale * sum[i][half] + (d ? more * *(const unaligned*)(d + at) : vec{});
        }
}

// Seven matrices whose rows are `stride` numbers apart. A tile may reach beyond a matrix's sides, where numbers mean
// nothing and reach no result.
struct Buffers {
    long panel, stride, size;
    float* numbers;

    Buffers(long side, long length) : panel(std::min(PANEL, length)) {
        static thread_local std::vector<float> kept;
        const long longest = std::max(side, panel);
        stride = 16 * (((longest + 15) / 16 + 1) | 1);  // an odd number of cache lines: rows do not compete for places
        size = (longest + TILE) * stride + WIDTH;
        if (kept.size() < 7 * static_cast<size_t>(size)) kept.resize(7 * size);
        numbers = kept.data();
    }
    float* operator[](int number) const { return numbers + number * size; }
};

// c = scale aᵀb + more d, [rows, columns].
void multiply(long rows, long columns, long depth, const float* a, const float* b, float* c, long stride) {
    for (long j = 0; j < columns; j += WIDTH)
        for (long i = 0; i < rows; i += TILE) tile(depth, a + i, b + j, c + i * stride + j, stride, 1, nullptr, 0);
}

// The same of a symmetric [side, side].
void multiply_symmetric(long side, long depth, const float* a, const float* b, float* c, long stride, float scale = 1,
                        const float* d = nullptr, float more = 0) {
    for (long j = 0; j < side; j += WIDTH)
        for (long i = 0; i < std::min(side, j + WIDTH); i += TILE)
            tile(depth, a + i, b + j, c + i * stride + j, stride, scale, d ? d + i * stride + j : d, more);
}

void mirror(long side, float* c, long stride) {
    for (long first = 0; first < side; first += 16)
        for (long i = first; i < side; ++i)
            for (long j = first; j < std::min(first + 16, i); ++j) c[i * stride + j] = c[j * stride + i];
}

// Copies [rows, columns] to rows that are `stride` apart, multiplied; the source's strides are any.
void copy(long rows, long columns, const float* from, long down, long right, float* to, long stride, double factor) {
    if (right == 1) {
        for (long i = 0; i < rows; ++i)
            for (long j = 0; j < columns; ++j) to[i * stride + j] = factor * from[i * down + j];
        return;
    }
    for (long first = 0; first < rows; first += 16)
        for (long j = 0; j < columns; ++j)
            for (long i = first; i < std::min(first + 16, rows); ++i)
                to[i * stride + j] = factor * from[i * down + j * right];
}

// In double precision, where no square of a float underflows.
double square_norm(long rows, long columns, const float* x, long stride) {
    constexpr long lanes = 16;
    double sums[lanes] = {};
    for (long i = 0; i < rows; ++i, x += stride) {
        long j = 0;
        for (; j + lanes <= columns; j += lanes)
            for (long lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<double>(x[j + lane]) * x[j + lane];
        for (; j < columns; ++j) sums[0] += static_cast<double>(x[j]) * x[j];
    }
    double total = 0;
    for (double sum : sums) total += sum;
    return total;
}

// F = AI + BG + CG²
void factor(long side, const float* gram, float* result, long stride) {
    multiply_symmetric(side, side, gram, gram, result, stride, C, gram, B);
    for (long i = 0; i < side; ++i) result[i * stride + i] += A;
    mirror(side, result, stride);
}

// The product of all factors F of the Gram matrix, which commute. Returns where it is.
float* product_of_factors(long side, float* gram, const Buffers& buffers) {
    float *of = buffers[2], *between = buffers[3], *total = buffers[4], *next = buffers[5];
    const long stride = buffers.stride;
    factor(side, gram, total, stride);
    std::copy(total, total + side * stride, of);
    for (int iteration = 1; iteration < ITERATIONS; ++iteration) {
        multiply_symmetric(side, side, of, gram, between, stride);
        mirror(side, between, stride);
        multiply_symmetric(side, side, of, between, gram, stride);
        mirror(side, gram, stride);
        factor(side, gram, of, stride);
        multiply_symmetric(side, side, of, total, next, stride);
        mirror(side, next, stride);
        std::swap(total, next);
    }
    return total;
}

struct Matrix {  // [side, length], part of one that is wide or, with `down` 1, tall
    float* x;
    long side, length, down, right;

    bool tall() const { return right != 1; }
    double square() const { return tall() ? square_norm(length, side, x, right) : square_norm(side, length, x, down); }
    void multiply_by(double factor) const {
        if (tall()) copy(length, side, x, right, 1, x, right, factor);
        else copy(side, length, x, down, 1, x, down, factor);
    }
};

// Makes a matrix with this norm orthogonal and of root mean square rms.
void orthogonalize(const Matrix& matrix, double norm, float rms, const Buffers& buffers) {
    const auto [x, side, length, down, right] = matrix;
    const long stride = buffers.stride;
    float *panel = buffers[0], *gram = buffers[1], *result = buffers[6];
    for (long first = 0; first < length; first += buffers.panel) {
        const long columns = std::min(buffers.panel, length - first);
        copy(columns, side, x + first * right, right, down, panel, stride, 1 / norm);
        multiply_symmetric(side, columns, panel, panel, gram, stride, 1, first ? gram : nullptr, 1);
    }
    mirror(side, gram, stride);
    const float* factors = product_of_factors(side, gram, buffers);
    for (long first = 0; first < length; first += buffers.panel) {
        const long columns = std::min(buffers.panel, length - first);
        float* from = x + first * right;
        copy(side, columns, from, down, right, panel, stride, 1 / norm);
        if (matrix.tall()) {
            multiply(columns, side, side, panel, factors, result, stride);
            copy(columns, side, result, stride, 1, from, right, 1);
        } else {
            multiply(side, columns, side, factors, panel, result, stride);
            copy(side, columns, result, stride, 1, from, down, 1);
        }
    }
    matrix.multiply_by(rms * std::sqrt(side * length / matrix.square()));
}

// Part of a matrix [rows, columns] that is split into so many along its smaller side.
Matrix part_of(float* matrix, long rows, long columns, long parts, long part) {
    const bool tall = rows > columns;
    const long side = tall ? columns : rows, down = tall ? 1 : columns;
    const long first = part * (side / parts) + std::min(part, side % parts);
    return {matrix + first * down, side / parts + (part < side % parts), tall ? rows : columns, down, tall ? columns : 1};
}

}  // namespace

// The norm of each part of matrices [matrices, rows, columns], [matrices, parts].
extern "C" void norms(float* x, long matrices, long rows, long columns, long parts, double* result) {
    for (long number = 0; number < matrices * parts; ++number)
        result[number] = std::sqrt(
            part_of(x + number / parts * rows * columns, rows, columns, parts, number % parts).square());
}

// Orthogonalises the parts from number `begin` on, before `end`, that have these norms.
extern "C" void orthogonalize(float* x, long rows, long columns, long parts, const double* norms, long begin, long end,
                              float rms) {
    const long side = std::min(rows, columns), length = std::max(rows, columns);
    const Buffers buffers((side + parts - 1) / parts, length);
    for (long number = begin; number < end; ++number) {
        const Matrix part = part_of(x + number / parts * rows * columns, rows, columns, parts, number % parts);
        double whole = 0;
        for (const double* norm = norms + number / parts * parts, *last = norm + parts; norm < last; ++norm)
            whole += *norm * *norm;
        if (norms[number] <= VANISHED * std::sqrt(whole)) part.multiply_by(0);
        else orthogonalize(part, norms[number], rms, buffers);
    }
}
