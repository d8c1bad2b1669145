// Convolutions with 3 x 3 kernels in Winograd's form F(4 x 4, 3 x 3): winograd.py says why and how.
//
// Images are [count, height, width, channels], kernels [3, 3, inputs, outputs]; channels are multiples of 16.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace {

constexpr int64_t OUT = 4, KERNEL = 3, IN = OUT + KERNEL - 1, POINTS = IN * IN;
constexpr int64_t LANES = 16;
constexpr int64_t TILES = 32;  // computed together: their transforms and products stay in the second-level cache

typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
void store(float* to, Vec v) { *reinterpret_cast<Vec*>(to) = v; }

struct Images {
    const float* pixels;
    int64_t count, height, width, channels;

    int64_t rows() const { return (height + OUT - 1) / OUT; }
    int64_t columns() const { return (width + OUT - 1) / OUT; }
    int64_t tiles() const { return count * rows() * columns(); }
    int64_t at(int64_t image, int64_t y, int64_t x) const { return ((image * height + y) * width + x) * channels; }
};

bool within(int64_t i, int64_t size) { return static_cast<uint64_t>(i) < static_cast<uint64_t>(size); }

struct Place {
    int64_t image, y, x;  // of a tile's first output
};

Place place(const Images& images, int64_t tile) {
    const int64_t a_row = images.columns(), an_image = images.rows() * a_row;
    return {tile / an_image, tile % an_image / a_row * OUT, tile % a_row * OUT};
}

// One-dimensional transforms y = T x of Winograd's polynomials at 0, 1, -1, 2, -2 and infinity; one vector of channels each.

struct InputTransform {  // B^T: 6 pixels to 6 points
    static constexpr int64_t from = IN, to = IN;
    static void apply(const Vec* x, Vec* y) {
        const Vec a = x[4] - 4 * x[2], b = x[3] - 4 * x[1];
        const Vec c = x[4] - x[2], d = 2 * (x[3] - x[1]);
        y[0] = 4 * x[0] - 5 * x[2] + x[4];
        y[1] = a + b;
        y[2] = a - b;
        y[3] = c + d;
        y[4] = c - d;
        y[5] = 4 * x[1] - 5 * x[3] + x[5];
    }
};

struct OutputTransform {  // A^T: 6 points to 4 pixels
    static constexpr int64_t from = IN, to = OUT;
    static void apply(const Vec* x, Vec* y) {
        const Vec a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
        y[0] = x[0] + a + c;
        y[1] = b + 2 * d;
        y[2] = a + 4 * c;
        y[3] = b + 8 * d + x[5];
    }
};

struct GradientTransform {  // A: 4 pixels of the outputs' gradient to 6 points
    static constexpr int64_t from = OUT, to = IN;
    static void apply(const Vec* x, Vec* y) {
        const Vec a = x[0] + x[2], b = x[1] + x[3], c = x[0] + 4 * x[2], d = 2 * x[1] + 8 * x[3];
        y[0] = x[0];
        y[1] = a + b;
        y[2] = a - b;
        y[3] = c + d;
        y[4] = c - d;
        y[5] = x[3];
    }
};

struct KernelTransform {  // G: 3 weights to 6 points
    static constexpr int64_t from = KERNEL, to = IN;
    static void apply(const Vec* x, Vec* y) {
        const Vec a = (x[0] + x[2]) * (-1.0f / 6), b = x[1] * (-1.0f / 6);
        const Vec c = x[0] * (1.0f / 24) + x[2] * (1.0f / 6), d = x[1] * (1.0f / 12);
        y[0] = x[0] * 0.25f;
        y[1] = a + b;
        y[2] = a - b;
        y[3] = c + d;
        y[4] = c - d;
        y[5] = x[2];
    }
};

struct KernelGradientTransform {  // G^T: 6 points to 3 weights
    static constexpr int64_t from = IN, to = KERNEL;
    static void apply(const Vec* x, Vec* y) {
        const Vec a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
        y[0] = x[0] * 0.25f - a * (1.0f / 6) + c * (1.0f / 24);
        y[1] = d * (1.0f / 12) - b * (1.0f / 6);
        y[2] = (c - a) * (1.0f / 6) + x[5];
    }
};

// Y = T X T^T, with X(i, j) from `read` and Y(i, j) to `write`.
template <class T, class Read, class Write>
[[gnu::always_inline]] inline void both_sides(Read read, Write write) {
    Vec half[T::to][T::from];
#pragma GCC unroll 8
    for (int64_t j = 0; j < T::from; j++) {
        Vec x[T::from], y[T::to];
        for (int64_t i = 0; i < T::from; i++) x[i] = read(i, j);
        T::apply(x, y);
        for (int64_t i = 0; i < T::to; i++) half[i][j] = y[i];
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < T::to; i++) {
        Vec y[T::to];
        T::apply(half[i], y);
        for (int64_t j = 0; j < T::to; j++) write(i, j, y[j]);
    }
}

// A matrix [rows, channels] for each of the points, a cache line apart so that a tile's points don't fall on one another.
struct Planes {
    int64_t channels, size;
    std::unique_ptr<float, decltype(&std::free)> data;

    Planes(int64_t rows, int64_t channels)
        : channels(channels),
          size(rows * channels + LANES),
          data(static_cast<float*>(std::aligned_alloc(LANES * sizeof(float), POINTS * size * sizeof(float))), &std::free) {}
    float* at(int64_t point, int64_t row) { return data.get() + point * size + row * channels; }
};

// The tiles' pixels, `T::from` squared of each beginning `before` above and left of its place, as points.
template <class T>
void to_points(const Images& images, int64_t first, int64_t count, int64_t before, const float* zeros, Planes& planes) {
    for (int64_t row = 0; row < TILES; row++) {
        const Place tile = place(images, first + row);
        const float* from[T::from * T::from];
        const int64_t corner = images.at(tile.image, tile.y - before, tile.x - before);
        for (int64_t i = 0; i < T::from; i++) {
            const bool row_there = row < count && within(tile.y - before + i, images.height);
            for (int64_t j = 0; j < T::from; j++) {
                const bool there = row_there && within(tile.x - before + j, images.width);
                const int64_t offset = corner + (i * images.width + j) * images.channels;
                from[i * T::from + j] = there ? images.pixels + offset : zeros;
            }
        }
        for (int64_t c = 0; c < images.channels; c += LANES)
            both_sides<T>([&](int64_t i, int64_t j) { return load(from[i * T::from + j] + c); },
                          [&](int64_t i, int64_t j, Vec point) { store(planes.at(i * IN + j, row) + c, point); });
    }
}

void from_points(Planes& planes, const Images& images, int64_t first, int64_t count, float* to) {
    for (int64_t row = 0; row < count; row++) {
        const Place tile = place(images, first + row);
        float* corner = to + images.at(tile.image, tile.y, tile.x);
        const int64_t high = std::min(OUT, images.height - tile.y), wide = std::min(OUT, images.width - tile.x);
        for (int64_t c = 0; c < images.channels; c += LANES)
            both_sides<OutputTransform>(
                [&](int64_t i, int64_t j) { return load(planes.at(i * IN + j, row) + c); },
                [&](int64_t i, int64_t j, Vec pixel) {
                    if (i < high && j < wide) store(corner + (i * images.width + j) * images.channels + c, pixel);
                });
    }
}

// C (+)= A B for a block of ROWS x (VECS * LANES) of C; A's entries a_row and a_inner apart.
template <int ROWS, int VECS>
void block_product(const float* a, int64_t a_row, int64_t a_inner, const float* b, int64_t b_row, float* c,
                   int64_t c_row, int64_t inner, bool add) {
    Vec sums[ROWS][VECS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) sums[r][v] = add ? load(c + r * c_row + v * LANES) : Vec{};
    for (int64_t k = 0; k < inner; k++, a += a_inner, b += b_row) {
        Vec factors[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) factors[v] = load(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; v++) sums[r][v] += a[r * a_row] * factors[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; v++) store(c + r * c_row + v * LANES, sums[r][v]);
}

// C: [rows, columns] (+)= A B, rows and columns multiples of 16.
void product(const float* a, int64_t a_row, int64_t a_inner, const float* b, float* c, int64_t rows, int64_t columns,
             int64_t inner, bool add) {
    int64_t v = 0;
    for (; v + 4 * LANES <= columns; v += 4 * LANES)
        for (int64_t r = 0; r < rows; r += 4)
            block_product<4, 4>(a + r * a_row, a_row, a_inner, b + v, columns, c + r * columns + v, columns, inner, add);
    for (; v + 2 * LANES <= columns; v += 2 * LANES)
        for (int64_t r = 0; r < rows; r += 8)
            block_product<8, 2>(a + r * a_row, a_row, a_inner, b + v, columns, c + r * columns + v, columns, inner, add);
    for (; v < columns; v += LANES)
        for (int64_t r = 0; r < rows; r += 8)
            block_product<8, 1>(a + r * a_row, a_row, a_inner, b + v, columns, c + r * columns + v, columns, inner, add);
}

}  // namespace

extern "C" void convolution(const float* inputs, const float* kernel, float* outputs, int64_t count, int64_t height,
                            int64_t width, int64_t channels, int64_t wanted, int threads) {
    const Images from{inputs, count, height, width, channels}, to{nullptr, count, height, width, wanted};
    const std::vector<float> zeros(channels);
    Planes weights(channels, wanted);
    for (int64_t k = 0; k < channels; k++)
        for (int64_t c = 0; c < wanted; c += LANES)
            both_sides<KernelTransform>(
                [&](int64_t i, int64_t j) { return load(kernel + ((i * KERNEL + j) * channels + k) * wanted + c); },
                [&](int64_t i, int64_t j, Vec point) { store(weights.at(i * IN + j, k) + c, point); });
#pragma omp parallel num_threads(threads)
    {
        Planes points(TILES, channels), products(TILES, wanted);
#pragma omp for
        for (int64_t first = 0; first < from.tiles(); first += TILES) {
            const int64_t tiles = std::min(TILES, from.tiles() - first);
            to_points<InputTransform>(from, first, tiles, 1, zeros.data(), points);
            for (int64_t p = 0; p < POINTS; p++)
                product(points.at(p, 0), channels, 1, weights.at(p, 0), products.at(p, 0), TILES, wanted, channels, false);
            from_points(products, to, first, tiles, outputs);
        }
    }
}

extern "C" void kernel_gradient(const float* inputs, const float* gradients, float* kernel, int64_t count,
                                int64_t height, int64_t width, int64_t channels, int64_t wanted, int threads) {
    const Images from{inputs, count, height, width, channels}, to{gradients, count, height, width, wanted};
    const std::vector<float> zeros(std::max(channels, wanted));
    const int64_t blocks = (from.tiles() + TILES - 1) / TILES;
    threads = static_cast<int>(std::min<int64_t>(threads, blocks));
    std::vector<Planes> sums;  // of each thread, so that the order of summation is always the same
    for (int i = 0; i < threads; i++) sums.emplace_back(channels, wanted);
#pragma omp parallel for num_threads(threads)
    for (int i = 0; i < threads; i++) {
        Planes points(TILES, channels), slopes(TILES, wanted);
        const int64_t start = blocks * i / threads * TILES, end = blocks * (i + 1) / threads * TILES;
        for (int64_t first = start; first < end; first += TILES) {
            const int64_t tiles = std::min(TILES, from.tiles() - first);
            to_points<InputTransform>(from, first, tiles, 1, zeros.data(), points);
            to_points<GradientTransform>(to, first, tiles, 0, zeros.data(), slopes);
            for (int64_t p = 0; p < POINTS; p++)
                product(points.at(p, 0), 1, channels, slopes.at(p, 0), sums[i].at(p, 0), channels, wanted, TILES,
                        first > start);
        }
    }
    for (int64_t k = 0; k < channels; k++)
        for (int64_t c = 0; c < wanted; c += LANES)
            both_sides<KernelGradientTransform>(
                [&](int64_t i, int64_t j) {
                    Vec sum{};
                    for (Planes& own : sums) sum += load(own.at(i * IN + j, k) + c);
                    return sum;
                },
                [&](int64_t i, int64_t j, Vec tap) { store(kernel + ((i * KERNEL + j) * channels + k) * wanted + c, tap); });
}
