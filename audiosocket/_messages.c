/* Media messages: the JSON and the base64 of both ways. */
#include "_frames.h"

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static char pairs[4096][2];    /* twelve bits as two characters of base64 */
static uint8_t sixes[256];     /* a character of base64 as six bits; 255: none of its alphabet */

void fill_tables(void) {
    memset(sixes, 255, sizeof sixes);
    for (int i = 0; i < 64; i++) sixes[(uint8_t)ALPHABET[i]] = (uint8_t)i;
    for (int i = 0; i < 4096; i++) {
        pairs[i][0] = ALPHABET[i >> 6];
        pairs[i][1] = ALPHABET[i & 63];
    }
}

char *put_base64(char *out, const uint8_t *data, Py_ssize_t size) {
    Py_ssize_t at = 0;
    for (; size - at >= 3; at += 3, out += 4) {
        memcpy(out, pairs[data[at] << 4 | data[at + 1] >> 4], 2);
        memcpy(out + 2, pairs[(data[at + 1] & 15) << 8 | data[at + 2]], 2);
    }
    if (at < size) {
        int second = size - at == 2 ? data[at + 1] : 0;
        memcpy(out, pairs[data[at] << 4 | second >> 4], 2);
        out[2] = size - at == 2 ? ALPHABET[(second & 15) << 2] : '=';
        out[3] = '=';
        out += 4;
    }
    return out;
}

char *put_number(char *out, unsigned long long number) {
    char digits[20];
    int left = 20;
    do digits[--left] = (char)('0' + number % 10); while (number /= 10);
    memcpy(out, digits + left, 20 - left);
    return out + 20 - left;
}

static char *put_bytes(char *out, PyObject *bytes) {
    memcpy(out, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    return out + PyBytes_GET_SIZE(bytes);
}

/* A tuple of five parts of a message, and their length; 0 with an error at anything else. */
int check_parts(PyObject *parts, Py_ssize_t *size) {
    *size = 0;
    if (parts == NULL || !PyTuple_Check(parts) || PyTuple_GET_SIZE(parts) != 5) {
        PyErr_SetString(PyExc_TypeError, "a tuple of five parts expected");
        return 0;
    }
    for (int i = 0; i < 5; i++) {
        PyObject *part = PyTuple_GET_ITEM(parts, i);
        if (!PyBytes_Check(part)) {
            PyErr_Format(PyExc_TypeError, "bytes expected, not %.80s", Py_TYPE(part)->tp_name);
            return 0;
        }
        if (PyBytes_GET_SIZE(part) > PY_SSIZE_T_MAX / 4 - *size) {
            PyErr_NoMemory();
            return 0;
        }
        *size += PyBytes_GET_SIZE(part);
    }
    return 1;
}

/* The five parts with the numbers and the base64 between them. */
char *put_message(char *out, PyObject *parts, const unsigned long long numbers[3], const uint8_t *audio, Py_ssize_t size) {
    for (int i = 0; i < 3; i++) out = put_number(put_bytes(out, PyTuple_GET_ITEM(parts, i)), numbers[i]);
    out = put_base64(put_bytes(out, PyTuple_GET_ITEM(parts, 3)), audio, size);
    return put_bytes(out, PyTuple_GET_ITEM(parts, 4));
}

/* MediaMessages: see audiosocket/dialects/media_messages.py */
#define SELF media_messages
static PyObject *media(PyObject *self, PyObject *audio);
static PyMethodDef media_messages_methods[] = {{"media", media, METH_O, NULL}, {NULL, NULL, 0, NULL}};
TYPE(media_messages, MEDIA_MESSAGES, "MediaMessages")

media_messages *messages_of(PyObject *bound) {
    if (bound == NULL || !PyCFunction_Check(bound) || PyCFunction_GET_FUNCTION(bound) != media) return NULL;
    return (media_messages *)PyCFunction_GET_SELF(bound);
}

Py_ssize_t media_message_room(media_messages *self, Py_ssize_t size) {
    if (!is_bytes(self->text) || self->end_1 < 0 || self->end_2 < self->end_1 || self->end_3 < self->end_2
        || self->end_4 < self->end_3 || PyBytes_GET_SIZE(self->text) < self->end_4) {
        PyErr_SetString(PyExc_TypeError, "five parts of a text expected");
        return -1;
    }
    if (size > PY_SSIZE_T_MAX / 4) {
        PyErr_NoMemory();
        return -1;
    }
    return PyBytes_GET_SIZE(self->text) + 3 * 20 + (size + 2) / 3 * 4;
}

static char *put_piece(char *out, const char *text, long long from, long long to) {
    memcpy(out, text + from, to - from);
    return out + (to - from);
}

char *put_media_message(media_messages *self, char *out, const uint8_t *audio, Py_ssize_t size) {
    const char *text = PyBytes_AS_STRING(self->text);
    unsigned long long sequence = ++self->sequence, chunk = ++self->chunk, at = self->next_ms;
    self->next_ms += self->frame_ms;
    out = put_number(put_piece(out, text, 0, self->end_1), sequence);
    out = put_number(put_piece(out, text, self->end_1, self->end_2), self->time_second ? at : chunk);
    out = put_number(put_piece(out, text, self->end_2, self->end_3), self->time_second ? chunk : at);
    out = put_base64(put_piece(out, text, self->end_3, self->end_4), audio, size);
    return put_piece(out, text, self->end_4, PyBytes_GET_SIZE(self->text));
}

static PyObject *media(PyObject *object, PyObject *audio) {
    media_messages *self = (media_messages *)object;
    if (!PyBytes_Check(audio)) return PyErr_Format(PyExc_TypeError, "bytes expected, not %.80s", Py_TYPE(audio)->tp_name);
    Py_ssize_t room = media_message_room(self, PyBytes_GET_SIZE(audio));
    if (room < 0) return NULL;
    PyObject *made = PyBytes_FromStringAndSize(NULL, room);
    if (made == NULL) return NULL;
    char *start = PyBytes_AS_STRING(made);
    char *end = put_media_message(self, start, (const uint8_t *)PyBytes_AS_STRING(audio), PyBytes_GET_SIZE(audio));
    _PyBytes_Resize(&made, end - start);
    return made;
}

/* What is left of a message. Each reader moves on behind what it has read, or gives 0 at anything unusual. */
typedef struct { const uint8_t *at, *end; } text;
typedef struct { const uint8_t *start; Py_ssize_t size; } piece;

static void skip_spaces(text *t) { while (t->at < t->end && *t->at == ' ') t->at++; }

static int read_char(text *t, char wanted) {
    skip_spaces(t);
    if (t->at == t->end || *t->at != (uint8_t)wanted) return 0;
    t->at++;
    return 1;
}

/* A string of printable ASCII without escapes: what stands between the quotes. */
static int read_string(text *t, piece *found) {
    if (!read_char(t, '"')) return 0;
    const uint8_t *quote = memchr(t->at, '"', t->end - t->at);
    if (quote == NULL) return 0;
    found->start = t->at;
    found->size = quote - t->at;
    t->at = quote + 1;
    return 1;
}

static int plain(piece found) {
    for (Py_ssize_t i = 0; i < found.size; i++)
        if (found.start[i] < 0x20 || found.start[i] > 0x7e || found.start[i] == '\\') return 0;
    return 1;
}

static int is(piece found, const char *word) {
    return found.size == (Py_ssize_t)strlen(word) && memcmp(found.start, word, found.size) == 0;
}

static int read_number(text *t) {
    skip_spaces(t);
    const uint8_t *start = t->at;
    while (t->at < t->end && *t->at >= '0' && *t->at <= '9') t->at++;
    return t->at > start && t->at - start < 16 && (*start != '0' || t->at - start == 1);
}

/* A value that says nothing: a plain string or a number. */
static int read_other(text *t) {
    piece found;
    skip_spaces(t);
    if (t->at < t->end && *t->at == '"') return read_string(t, &found) && plain(found);
    return read_number(t);
}

/* The object behind "media": its one payload, and other members that say nothing. */
static int read_media(text *t, piece *payload) {
    if (!read_char(t, '{')) return 0;
    int seen = 0;
    do {
        piece key;
        if (!read_string(t, &key) || !read_char(t, ':')) return 0;
        if (is(key, "payload")) {
            if (seen++ || !read_string(t, payload)) return 0;
        } else if (!plain(key) || !read_other(t)) return 0;
    } while (read_char(t, ','));
    return seen && read_char(t, '}');
}

static int known(piece key) {
    return is(key, "mark") || is(key, "dtmf") || is(key, "event") || is(key, "media") || is(key, "stream_sid")
        || is(key, "streamSid");
}

static int read_message(text *t, piece sid, piece *payload) {
    if (!read_char(t, '{')) return 0;
    int event = 0, media = 0, sids = 0;
    do {
        piece key, value;
        if (!read_string(t, &key) || !read_char(t, ':')) return 0;
        if (is(key, "event")) {
            if (event++ || !read_string(t, &value) || !is(value, "media")) return 0;
        } else if (is(key, "media")) {
            if (media++ || !read_media(t, payload)) return 0;
        } else if (is(key, "stream_sid") || is(key, "streamSid")) {
            if (sids++ || !read_string(t, &value) || !plain(value)) return 0;
            if (value.size != sid.size || memcmp(value.start, sid.start, sid.size) != 0) return 0;
        } else if (known(key) || !plain(key) || !read_other(t)) return 0;
    } while (read_char(t, ','));
    return event && media && read_char(t, '}') && t->at == t->end;
}

/* The bytes behind a piece of base64; NULL without an error: it is not written as usual. */
static PyObject *from_base64(piece text) {
    const uint8_t *in = text.start;
    Py_ssize_t size = text.size;
    if (size == 0 || size % 4) return NULL;
    int padding = in[size - 1] == '=' ? 1 + (in[size - 2] == '=') : 0;
    PyObject *made = PyBytes_FromStringAndSize(NULL, size / 4 * 3 - padding);
    if (made == NULL) return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(made), bad = 0;
    for (Py_ssize_t whole = (size - (padding ? 4 : 0)) / 4; whole; whole--, in += 4, out += 3) {
        uint8_t a = sixes[in[0]], b = sixes[in[1]], c = sixes[in[2]], d = sixes[in[3]];
        bad |= a | b | c | d;
        out[0] = (uint8_t)(a << 2 | b >> 4);
        out[1] = (uint8_t)(b << 4 | c >> 2);
        out[2] = (uint8_t)(c << 6 | d);
    }
    if (padding) {
        uint8_t a = sixes[in[0]], b = sixes[in[1]], c = padding == 1 ? sixes[in[2]] : 0;
        bad |= a | b | c;
        /* Bits behind the last byte that are not 0: how they are taken is left to the full decoder. */
        if (padding == 1 ? c & 3 : b & 15) bad = 255;
        out[0] = (uint8_t)(a << 2 | b >> 4);
        if (padding == 1) out[1] = (uint8_t)(b << 4 | c >> 2);
    }
    if (bad & 0xC0) Py_CLEAR(made);
    return made;
}

PyObject *read_media_message(const uint8_t *start, Py_ssize_t size, PyObject *stream_sid, PyObject *samples) {
    text t = {start, start + size};
    piece sid = {(const uint8_t *)PyBytes_AS_STRING(stream_sid), PyBytes_GET_SIZE(stream_sid)}, payload = {start, 0};
    if (!read_message(&t, sid, &payload)) return NULL;
    PyObject *audio = from_base64(payload);
    if (audio == NULL || samples == NULL) return audio;
    PyObject *made = look_up_samples(audio, samples);
    Py_DECREF(audio);
    return made;
}
