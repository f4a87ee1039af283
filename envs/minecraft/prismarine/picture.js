'use strict'
// The first-person view, drawn with headless WebGL, up to `reach` chunks far with fog in the colour of the sky.
// Columns are drawn in a fixed order, so a frame depends only on the columns and the pose, not on the order in which columns were loaded.

const fs = require('fs')
const { PNG } = require('pngjs')
const { Neighbourhood, meshColumn, BYTES } = require('./mesher')

const SKY = [0.56, 0.73, 0.96]
const NEAR = 0.05
const TILE = 16 // pixels of a texture in the atlas

const VERTEX = `
precision highp float;
attribute vec3 position;
attribute vec2 texture;
attribute vec4 light;
uniform mat4 view;
uniform vec3 offset;
varying vec2 at;
varying vec3 shade;
varying float away;
void main() {
  vec3 seen = position + offset;
  at = texture;
  shade = light.rgb;
  away = length(seen.xz);
  gl_Position = view * vec4(seen, 1.0);
}`

const FRAGMENT = `
precision highp float;
uniform sampler2D atlas;
uniform vec3 sky;
uniform vec2 fog;
uniform float clear;
varying vec2 at;
varying vec3 shade;
varying float away;
void main() {
  vec4 colour = texture2D(atlas, at);
  HOLES
  float haze = clamp((away - fog.x) * fog.y, 0.0, 1.0);
  gl_FragColor = vec4(mix(colour.rgb * shade, sky, haze), mix(1.0, colour.a, clear * (1.0 - haze)));
}`

class Picture {
  constructor (blocks, reach, fieldOfView) {
    this.reach = reach
    this.fieldOfView = fieldOfView
    this.gl = require('gl')(16, 16, { antialias: false, preserveDrawingBuffer: true })
    if (!this.gl) throw new Error('no WebGL context: an X display with a software or hardware OpenGL driver is needed (Debian: xvfb, libgl1-mesa-dri)')
    this.name = this.gl.getParameter(this.gl.VERSION)
    this.world = new Neighbourhood(blocks)
    this.targets = new Map()
    this.order = offsets(reach)
    const atlas = PNG.sync.read(fs.readFileSync(blocks.atlasFile))
    const holed = bleed(atlas)
    this.isHoled = (u, v) => holed.has(Math.floor(v * atlas.height / TILE) * 4096 + Math.floor(u * atlas.width / TILE))
    this.upload(atlas)
    // With a shader that may discard, the driver also shades hidden fragments, so it is used only for textures with holes.
    this.solid = this.compile('')
    this.holed = this.compile('if (colour.a < 0.1) discard;')
  }

  upload (atlas) {
    const gl = this.gl
    gl.enable(gl.DEPTH_TEST)
    gl.frontFace(gl.CW) // frames are drawn upside down, so that the first row read is the top one
    gl.enable(gl.CULL_FACE)
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE)
    gl.clearColor(...SKY, 1)
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture())
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, atlas.width, atlas.height, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(atlas.data))
    gl.generateMipmap(gl.TEXTURE_2D)
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST)
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST_MIPMAP_NEAREST)
  }

  compile (holes) {
    const gl = this.gl
    if (!gl.getExtension('OES_element_index_uint')) throw new Error('this OpenGL driver has no 32 bit indices')
    const program = gl.createProgram()
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT.replace('HOLES', holes)]]) {
      const shader = gl.createShader(kind)
      gl.shaderSource(shader, source)
      gl.compileShader(shader)
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader))
      gl.attachShader(program, shader)
    }
    const attributes = ['position', 'texture', 'light']
    attributes.forEach((name, i) => gl.bindAttribLocation(program, i, name))
    gl.linkProgram(program)
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program))
    gl.useProgram(program)
    attributes.forEach((name, i) => gl.enableVertexAttribArray(i))
    const uniform = Object.fromEntries(['view', 'offset', 'sky', 'fog', 'clear', 'atlas'].map(name => [name, gl.getUniformLocation(program, name)]))
    const far = this.reach * 16
    gl.uniform3fv(uniform.sky, SKY)
    gl.uniform2f(uniform.fog, 0.7 * far, 1 / (0.3 * far))
    gl.uniform1i(uniform.atlas, 0)
    return { program, uniform }
  }

  // ---- meshes ----

  // Mesh a column. Returns false if one of its neighbours is not loaded.
  build (columns, column) {
    const near = []
    for (let dx = -1; dx <= 1; dx++) {
      for (let dz = -1; dz <= 1; dz++) {
        const other = columns.get(column.cx + dx, column.cz + dz)
        if (other === undefined) return false
        near.push(other)
      }
    }
    this.forget(column)
    const gl = this.gl
    const { vertices, parts, low, high } = meshColumn(this.world, column, near, this.isHoled)
    const wide = vertices.byteLength / BYTES > 65536
    const total = parts.reduce((sum, part) => sum + part.length, 0)
    column.mesh = { low, high, wide, first: [], count: [] }
    if (total === 0) return true
    const indices = new (wide ? Uint32Array : Uint16Array)(total)
    let first = 0
    for (const part of parts) {
      column.mesh.first.push(first * (wide ? 4 : 2))
      column.mesh.count.push(part.length)
      indices.set(part, first)
      first += part.length
    }
    column.mesh.vertices = this.buffer(gl.ARRAY_BUFFER, new Uint8Array(vertices))
    column.mesh.indices = this.buffer(gl.ELEMENT_ARRAY_BUFFER, indices)
    return true
  }

  buffer (kind, data) {
    const buffer = this.gl.createBuffer()
    this.gl.bindBuffer(kind, buffer)
    this.gl.bufferData(kind, data, this.gl.STATIC_DRAW)
    return buffer
  }

  forget (column) {
    if (column.mesh && column.mesh.vertices) {
      this.gl.deleteBuffer(column.mesh.vertices)
      this.gl.deleteBuffer(column.mesh.indices)
    }
    column.mesh = undefined
  }

  // ---- drawing ----

  // Draw the view from `eye` (mineflayer's axes and angles) into `pixels`, RGBA, the top row first.
  draw (columns, eye, yaw, pitch, height, width, pixels) {
    const gl = this.gl
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target(height, width))
    gl.viewport(0, 0, width, height)
    gl.depthMask(true)
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT)
    const { matrix, sides } = camera(yaw, pitch, this.fieldOfView, height, width, this.reach * 16 * 1.5 + 128)
    const cx = Math.floor(eye[0] / 16)
    const cz = Math.floor(eye[2] / 16)
    const shown = []
    for (const [dx, dz] of this.order) {
      const column = columns.get(cx + dx, cz + dz)
      if (column === undefined || column.mesh === undefined || column.mesh.vertices === undefined) continue
      const offset = [column.cx * 16 - eye[0], -eye[1], column.cz * 16 - eye[2]]
      if (inside(sides, offset, column.mesh.low, column.mesh.high)) shown.push([column.mesh, offset])
    }
    gl.disable(gl.BLEND)
    this.drawParts(this.solid, matrix, shown, 0)
    this.drawParts(this.holed, matrix, shown, 1)
    gl.enable(gl.BLEND)
    this.drawParts(this.solid, matrix, shown.reverse(), 2) // transparent, so the farthest first
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels)
  }

  drawParts ({ program, uniform }, matrix, shown, part) {
    const gl = this.gl
    gl.useProgram(program)
    gl.uniformMatrix4fv(uniform.view, false, matrix)
    gl.uniform1f(uniform.clear, part === 2 ? 1 : 0)
    for (const [mesh, offset] of shown) {
      if (mesh.count[part] === 0) continue
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.vertices)
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.indices)
      gl.vertexAttribPointer(0, 3, gl.FLOAT, false, BYTES, 0)
      gl.vertexAttribPointer(1, 2, gl.FLOAT, false, BYTES, 12)
      gl.vertexAttribPointer(2, 4, gl.UNSIGNED_BYTE, true, BYTES, 20)
      gl.uniform3f(uniform.offset, offset[0], offset[1], offset[2])
      gl.drawElements(gl.TRIANGLES, mesh.count[part], mesh.wide ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT, mesh.first[part])
    }
  }

  // The framebuffer for frames of one size, with a depth of 24 bits.
  target (height, width) {
    const key = height + 'x' + width
    let framebuffer = this.targets.get(key)
    if (framebuffer === undefined) {
      const gl = this.gl
      const atlas = gl.getParameter(gl.TEXTURE_BINDING_2D)
      const colour = gl.createTexture()
      gl.bindTexture(gl.TEXTURE_2D, colour)
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, null)
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST)
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE)
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE)
      gl.bindTexture(gl.TEXTURE_2D, atlas)
      const depth = gl.createRenderbuffer()
      gl.bindRenderbuffer(gl.RENDERBUFFER, depth)
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_STENCIL, width, height)
      framebuffer = gl.createFramebuffer()
      gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer)
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, colour, 0)
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_STENCIL_ATTACHMENT, gl.RENDERBUFFER, depth)
      if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) throw new Error(`cannot draw frames of ${width} x ${height} pixels`)
      this.targets.set(key, framebuffer)
    }
    return framebuffer
  }
}

// Offsets of the columns within `reach`, the nearest first, with ties in a fixed order.
function offsets (reach) {
  const all = []
  for (let dx = -reach; dx <= reach; dx++) for (let dz = -reach; dz <= reach; dz++) all.push([dx, dz])
  return all.sort((a, b) => (a[0] * a[0] + a[1] * a[1]) - (b[0] * b[0] + b[1] * b[1]) || a[0] - b[0] || a[1] - b[1])
}

// The view matrix of a camera at the origin, and the inward normals of the four sides of its frustum.
function camera (yaw, pitch, fieldOfView, height, width, far) {
  const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)]
  const right = [cy, 0, -sy]
  const ahead = [-sy * cp, sp, -cy * cp]
  const up = [sy * sp, cp, cy * sp]
  const f = 1 / Math.tan(fieldOfView / 2)
  const g = f * height / width
  const a = (far + NEAR) / (far - NEAR)
  const b = -2 * far * NEAR / (far - NEAR)
  const column = i => [g * right[i], -f * up[i], a * ahead[i], ahead[i]] // -f: upside down
  const matrix = new Float32Array([...column(0), ...column(1), ...column(2), 0, 0, b, 0])
  const plane = (axis, slope) => axis.map((v, i) => slope * v + ahead[i])
  return { matrix, sides: [plane(right, g), plane(right, -g), plane(up, f), plane(up, -f)] }
}

// Whether a column from height `low` to `high` may be visible: it is not entirely outside one side of the frustum.
function inside (sides, offset, low, high) {
  for (const [x, y, z] of sides) {
    const furthest = x * (offset[0] + (x > 0 ? 16 : 0)) + y * (offset[1] + (y > 0 ? high : low)) + z * (offset[2] + (z > 0 ? 16 : 0))
    if (furthest < 0) return false
  }
  return true
}

// Give the transparent pixels of each texture the mean colour of its other pixels, so that its mip levels do not darken at the edges.
// Returns the textures that have pixels that are not opaque, each as row * 4096 + column.
function bleed ({ data, width, height }) {
  const holed = new Set()
  for (let ty = 0; ty + TILE <= height; ty += TILE) {
    for (let tx = 0; tx + TILE <= width; tx += TILE) {
      const sum = [0, 0, 0, 0]
      let least = 255
      const each = visit => { for (let y = ty; y < ty + TILE; y++) for (let x = tx; x < tx + TILE; x++) visit(4 * (y * width + x)) }
      each(i => { least = Math.min(least, data[i + 3]); if (data[i + 3] > 0) { for (let c = 0; c < 3; c++) sum[c] += data[i + c]; sum[3]++ } })
      if (sum[3] > 0 && sum[3] < TILE * TILE) each(i => { if (data[i + 3] === 0) for (let c = 0; c < 3; c++) data[i + c] = Math.round(sum[c] / sum[3]) })
      if (least < 255) holed.add(ty / TILE * 4096 + tx / TILE)
    }
  }
  return holed
}

module.exports = { Picture }
