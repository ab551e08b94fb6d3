/* For tables of ways out (struct machine_words): one text for library and command, or one for each. */
#ifndef TENDER_WORDS_H
#define TENDER_WORDS_H

#define BOTH(text)             {text, text}
#define EACH(library, command) {library, command}

#define LANDLOCK_CURE                                                                                        \
    "the kernel must be 5.13 or later, with `landlock` among its security modules (lsm=landlock,...)"

#endif
