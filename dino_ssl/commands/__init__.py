"""The commands of `dino-ssl`, a module each: parse the arguments, call, print, write."""
