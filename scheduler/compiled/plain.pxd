cimport cython

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define SYMPHONY_FETCH(p) __builtin_prefetch(p, 1)
    #define SYMPHONY_LOWEST(word) __builtin_ctzll(word)
    #else
    #define SYMPHONY_FETCH(p) ((void)(p))
    static int SYMPHONY_LOWEST(unsigned long long word) {
        int i = 0;
        while (!(word >> i & 1)) i++;
        return i;
    }
    #endif
    """
    void prefetch "SYMPHONY_FETCH"(const void *) noexcept nogil
    int count_zeros "SYMPHONY_LOWEST"(unsigned long long) noexcept nogil

@cython.boundscheck(False)
@cython.wraparound(False)
cdef inline void fetch(const unsigned long long[::1] column, long long i) noexcept:
    prefetch(&column[i])

@cython.boundscheck(False)
@cython.wraparound(False)
cdef inline void fetch_signed(const long long[::1] column, long long i) noexcept:
    prefetch(&column[i])

cdef inline long long lowest(unsigned long long word) noexcept:
    return count_zeros(word)

cdef inline long long whole(double number) noexcept:
    return <long long> number
