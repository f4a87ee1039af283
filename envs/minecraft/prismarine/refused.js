'use strict'
// What was asked for cannot be done, and whoever asked can put it right.
class Refused extends Error {}
module.exports = { Refused }
